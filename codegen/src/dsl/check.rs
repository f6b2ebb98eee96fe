//! What a declaration must satisfy beyond its grammar.

use super::parse::Spans;
use super::{ArgKind, ElementType, Expr, Kernel, SpecValues};
use std::collections::HashSet;
use syn::{Error, Result};

/// Checks names, element types, expressions and bodies.
pub(super) fn check(kernel: &Kernel, spans: &Spans) -> Result<()> {
    let fail = |name: &str, message: String| Err(Error::new(spans.of(name), message));
    let mut names = HashSet::new();
    for arg in &kernel.args {
        if !names.insert(arg.name.as_str()) {
            return fail(&arg.name, format!("argument `{}` is declared twice", arg.name));
        }
        if let ArgKind::Tensor { element: ElementType::Param(param), .. } = &arg.kind
            && !kernel
                .specialize
                .iter()
                .any(|s| s.name == *param && matches!(s.values, SpecValues::DTypes(_)))
        {
            return fail(
                param,
                format!(
                    "`{param}` is no element type: use f16, bf16, f32, i32, u8 or a dtype parameter of `specialize`"
                ),
            );
        }
    }
    let dims: HashSet<&str> = kernel.dims().into_iter().collect();
    if let Some(clash) = kernel.args.iter().find(|arg| dims.contains(arg.name.as_str())) {
        return fail(
            &clash.name,
            format!("`{}` is both an argument and a dimension: rename one", clash.name),
        );
    }
    let mut constants: HashSet<&str> = HashSet::new();
    for param in &kernel.specialize {
        if dims.contains(param.name.as_str()) || !constants.insert(&param.name) {
            return fail(&param.name, format!("`{}` already names something else", param.name));
        }
    }
    for shipped in &kernel.ship {
        let within =
            kernel.spec_param(&shipped.name).is_some_and(|param| match (&shipped.values, &param.values) {
                (SpecValues::DTypes(some), SpecValues::DTypes(all)) => {
                    some.iter().all(|value| all.contains(value))
                }
                (SpecValues::Ints(some), SpecValues::Ints(all)) => {
                    some.iter().all(|value| all.contains(value))
                }
                _ => false,
            });
        if !within {
            return fail(
                &shipped.name,
                format!("`ship` names `{}` with values `specialize` does not have", shipped.name),
            );
        }
    }
    let ints: HashSet<&str> = kernel
        .specialize
        .iter()
        .filter(|param| matches!(param.values, SpecValues::Ints(_)))
        .map(|param| param.name.as_str())
        .collect();

    let known = |expr: &Expr, scope: &[&HashSet<&str>], what: &str| -> Result<()> {
        match expr.names().into_iter().find(|name| !scope.iter().any(|names| names.contains(name))) {
            None => Ok(()),
            Some(name) => {
                let mut allowed: Vec<&str> = scope.iter().flat_map(|names| names.iter().copied()).collect();
                allowed.sort_unstable();
                let message = format!("`{name}` is not known in {what}: it can use {}", allowed.join(", "));
                Err(Error::new(spans.of_expr(expr), message))
            }
        }
    };
    let condition = |expr: &Expr, what: &str| -> Result<()> {
        if expr.is_condition() {
            return Ok(());
        }
        Err(Error::new(spans.of_expr(expr), format!("{what} must be a comparison, found `{expr}`")))
    };

    // A derived dimension sees the tensors' dimensions and the derived ones above it.
    let mut bound: HashSet<&str> = dims.clone();
    for derived in &kernel.derived {
        bound.remove(derived.name.as_str());
    }
    for derived in &kernel.derived {
        known(&derived.value, &[&bound, &ints], "a derived dimension")?;
        if !bound.insert(&derived.name) {
            return fail(&derived.name, format!("dimension `{}` is derived twice", derived.name));
        }
    }
    for require in &kernel.requires {
        condition(&require.condition, "a requirement")?;
        known(&require.condition, &[&dims, &ints], "a requirement")?;
    }

    if kernel.bodies.is_empty() {
        return fail(&kernel.name, format!("kernel `{}` has no body: add `body sm80 {{ … }}`", kernel.name));
    }
    let mut families = HashSet::new();
    for body in &kernel.bodies {
        if !families.insert(body.family) {
            return fail(
                &kernel.name,
                format!("kernel `{}` has two bodies for {}", kernel.name, body.family),
            );
        }
        let mut tune: HashSet<&str> = HashSet::new();
        for param in &body.tune {
            if constants.contains(param.name.as_str()) || !tune.insert(&param.name) {
                return fail(&param.name, format!("`{}` is already a parameter: rename it", param.name));
            }
        }
        for constraint in &body.constraints {
            condition(&constraint.condition, "a constraint")?;
            known(&constraint.condition, &[&ints, &tune], "a constraint")?;
        }
        known(&body.smem_bytes, &[&ints, &tune], "a budget")?;
        known(&body.registers, &[&ints, &tune], "a budget")?;
        if let Some(prefer) = &body.prefer {
            known(prefer, &[&ints, &tune, &HashSet::from(["CTAS_PER_SM"])], "`prefer`")?;
        }
        known(&body.launch.threads, &[&ints, &tune], "`threads`")?;
        for axis in &body.launch.grid {
            known(axis, &[&dims, &ints, &tune], "`grid`")?;
        }
    }
    Ok(())
}
