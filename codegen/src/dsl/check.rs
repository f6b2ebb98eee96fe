//! What a declaration must satisfy beyond its grammar.

use super::params::ParamsLayout;
use super::spans::{Role, Spans};
use super::{ArgKind, Body, ElementType, Expr, Kernel, SpecValues};
use crate::arch::{Arch, Family};
use std::collections::HashSet;
use syn::{Error, Result};

/// Checks names, element types, expressions and bodies.
pub(super) fn check(kernel: &Kernel, spans: &Spans) -> Result<()> {
    let check = Check { kernel, spans };
    check.sizes()?;
    check.arguments()?;
    check.parameters()?;
    check.functions()?;
    check.dimensions()?;
    if kernel.bodies.is_empty() {
        let message = format!("kernel `{}` has no body: add `body sm80 {{ … }}`", kernel.name);
        return check.fail(&kernel.name, message);
    }
    let mut families = HashSet::new();
    for (at, body) in kernel.bodies.iter().enumerate() {
        if !families.insert(body.family) {
            let message = format!("a second body for {}: join the two", body.family);
            return Err(Error::new(spans.of_body(at + 1), message));
        }
        check.body(body, at + 1)?;
    }
    Ok(())
}

/// The most combinations of parameters: all of them are enumerated.
const MOST_POINTS: usize = 1 << 16;

/// The most arguments, and the bytes that they and the dimensions may take.
const MOST_ARGS: usize = 256;
const MOST_BYTES: usize = 4096;

/// The most parameters of `specialize` or of a `tune`, which a variant is named after, and the most conditions, each of which
/// every combination is held against.
const MOST_PARAMS: usize = 64;
const MOST_CONDITIONS: usize = 256;

struct Check<'a> {
    kernel: &'a Kernel,
    spans: &'a Spans,
}

impl Check<'_> {
    fn fail<T>(&self, name: &str, message: String) -> Result<T> {
        Err(Error::new(self.spans.of(name), message))
    }

    /// What is too many for everything after.
    fn sizes(&self) -> Result<()> {
        let kernel = self.kernel;
        for (found, what, most) in [
            (kernel.args.len(), "arguments", MOST_ARGS),
            (kernel.specialize.len(), "parameters of `specialize`", MOST_PARAMS),
            (kernel.derived.len(), "derived dimensions", MOST_BYTES / size_of::<i32>()),
            (kernel.requires.len(), "requirements", MOST_CONDITIONS),
        ] {
            if found > most {
                return self.fail(&kernel.name, format!("{found} {what}, a kernel has at most {most}"));
            }
        }
        if !kernel.args.iter().any(|arg| matches!(arg.kind, ArgKind::Tensor { .. })) {
            let what = if kernel.args.is_empty() { "no arguments" } else { "scalars alone" };
            let message = format!("kernel `{}` has {what}: it needs a tensor to write", kernel.name);
            return self.fail(&kernel.name, message);
        }
        for (at, body) in kernel.bodies.iter().enumerate() {
            for (found, what, most) in [
                (body.tune.len(), "parameters of `tune`", MOST_PARAMS),
                (body.constraints.len(), "constraints", MOST_CONDITIONS),
            ] {
                if found > most {
                    let message = format!("{found} {what}, a body has at most {most}");
                    return Err(Error::new(self.spans.of_body(at + 1), message));
                }
            }
        }
        Ok(())
    }

    fn arguments(&self) -> Result<()> {
        let mut names = HashSet::new();
        for arg in &self.kernel.args {
            if !names.insert(arg.name.as_str()) {
                return self.fail(&arg.name, format!("argument `{}` is declared twice", arg.name));
            }
            let ArgKind::Tensor { element: ElementType::Param(param), .. } = &arg.kind else { continue };
            let found = self.kernel.spec_param(param);
            if !found.is_some_and(|param| matches!(param.values, SpecValues::DTypes(_))) {
                let message = format!(
                    "`{param}` is no element type: use f16, bf16, f32, i32, u8 or a dtype parameter of `specialize`"
                );
                return Err(Error::new(self.spans.of_first(param), message));
            }
        }
        let dims = self.kernel.dims();
        if let Some(clash) = dims.iter().find(|dim| names.contains(*dim)) {
            return self.fail(clash, format!("`{clash}` is both an argument and a dimension: rename one"));
        }
        let layout = ParamsLayout::of(self.kernel);
        if layout.size > MOST_BYTES {
            let message = format!(
                "the arguments take {} bytes, CUDA passes at most {MOST_BYTES} to a kernel",
                layout.size
            );
            return self.fail(&self.kernel.name, message);
        }
        let mut members = HashSet::new();
        for field in layout.fields {
            if !members.insert(field.name.clone()) {
                let tensor = field.name.strip_suffix("_stride").unwrap_or(&field.name);
                let message = format!("`{}` is the name of the strides of `{tensor}`: rename it", field.name);
                return self.fail(&field.name, message);
            }
        }
        Ok(())
    }

    fn parameters(&self) -> Result<()> {
        let mut taken = self.variables();
        for name in self.spans.constant_names() {
            if !taken.insert(name.to_lowercase()) {
                return self.fail(name, taken_already(name));
            }
            self.no_function(name)?;
        }
        for param in &self.kernel.specialize {
            if !taken.insert(param.name.to_lowercase()) {
                return self.fail(&param.name, taken_already(&param.name));
            }
            self.no_function(&param.name)?;
        }
        let sizes =
            self.kernel.specialize.iter().map(|param| (param.name.as_str(), param.values.all().len()));
        self.points("`specialize`", sizes)?;
        let (mut above, ints) = (Vec::new(), self.ints());
        for param in &self.kernel.specialize {
            if let Some(default) = &param.default {
                self.known(default, Role::Default, 0, &[&above])?;
            }
            above.extend(ints.iter().copied().filter(|name| *name == param.name));
        }
        for shipped in &self.kernel.ship {
            let Some(param) = self.kernel.spec_param(&shipped.name) else {
                let message = format!("`ship` names `{}`, which `specialize` does not", shipped.name);
                return Err(Error::new(self.spans.of_shipped(&shipped.name), message));
            };
            let all = param.values.all();
            if let Some(unknown) = shipped.values.all().into_iter().find(|value| !all.contains(value)) {
                let message = format!(
                    "`ship` gives `{}` the value {unknown}, which `specialize` does not have: use some of {}",
                    shipped.name,
                    param.values.list()
                );
                return Err(Error::new(self.spans.of_shipped(&shipped.name), message));
            }
        }
        Ok(())
    }

    /// The constant that says whether a launch has a function is of the generated code.
    fn no_function(&self, name: &str) -> Result<()> {
        let slots = self.kernel.functions.iter();
        match slots.map(|slot| slot.name.as_str()).find(|slot| name == format!("HAS_{}", slot.to_uppercase()))
        {
            Some(slot) => self.fail(name, format!("`{name}` says whether a launch has `{slot}`: rename it")),
            None => Ok(()),
        }
    }

    /// How many combinations of values there are, counted before any is made.
    fn points<'a>(&self, what: &str, sizes: impl Iterator<Item = (&'a str, usize)> + Clone) -> Result<()> {
        let mut points = 1usize;
        for (last, size) in sizes.clone() {
            points = points.saturating_mul(size);
            if points > MOST_POINTS {
                let factors: Vec<String> = sizes
                    .filter(|(_, size)| *size > 1)
                    .map(|(name, size)| format!("{name} {size}"))
                    .collect();
                let message = format!(
                    "{what} has more than {MOST_POINTS} combinations of values ({}): list fewer, those worth trying",
                    factors.join(" × ")
                );
                return self.fail(last, message);
            }
        }
        Ok(())
    }

    fn functions(&self) -> Result<()> {
        for (at, slot) in self.kernel.functions.iter().enumerate() {
            let before = &self.kernel.functions[..at];
            if before.iter().any(|other| other.name == slot.name || other.kind == slot.kind) {
                let message = "a kernel calls each kind of function under one name: keep one of the two";
                return self.fail(&slot.name, message.to_owned());
            }
        }
        Ok(())
    }

    fn dimensions(&self) -> Result<()> {
        let (kernel, dims, ints) = (self.kernel, self.kernel.dims(), self.ints());
        // A derived dimension sees the tensors' dimensions and the derived ones above it.
        let derived = |name: &&str| kernel.derived.iter().any(|derived| derived.name == **name);
        let mut bound: Vec<&str> = dims.iter().copied().filter(|dim| !derived(dim)).collect();
        for derived in &kernel.derived {
            self.known(&derived.value, Role::Derived, 0, &[&bound, &ints])?;
            if bound.contains(&derived.name.as_str()) {
                return self.fail(&derived.name, format!("dimension `{}` is derived twice", derived.name));
            }
            bound.push(&derived.name);
        }
        for require in &kernel.requires {
            self.condition(&require.condition, Role::Requirement, 0)?;
            self.known(&require.condition, Role::Requirement, 0, &[&dims, &ints])?;
        }
        Ok(())
    }

    fn body(&self, body: &Body, at: usize) -> Result<()> {
        let mut taken = self.variables();
        taken.extend(self.kernel.specialize.iter().map(|param| param.name.to_lowercase()));
        taken.extend(self.spans.constant_names().map(str::to_lowercase));
        for param in &body.tune {
            if !taken.insert(param.name.to_lowercase()) {
                return self.fail(&param.name, taken_already(&param.name));
            }
            self.no_function(&param.name)?;
        }
        for arch in Arch::ALL.into_iter().filter(|arch| arch.runs(body.family)) {
            let tune = body.tune_for(arch);
            self.points("`tune`", tune.map(|param| (param.name.as_str(), param.values.len())))?;
        }
        let (dims, ints) = (self.kernel.dims(), self.ints());
        let tune: Vec<&str> = body.tune.iter().map(|param| param.name.as_str()).collect();
        for constraint in &body.constraints {
            self.condition(&constraint.condition, Role::Constraint, at)?;
            self.known(&constraint.condition, Role::Constraint, at, &[&ints, &tune])?;
        }
        self.known(&body.smem_bytes, Role::Budget, at, &[&ints, &tune])?;
        self.known(&body.registers, Role::Budget, at, &[&ints, &tune])?;
        if let Some(prefer) = &body.prefer {
            self.known(prefer, Role::Prefer, at, &[&ints, &tune, &["CTAS_PER_SM", "GRID_PER_SM"]])?;
        }
        self.known(&body.launch.threads, Role::Threads, at, &[&ints, &tune])?;
        for axis in &body.launch.grid {
            self.known(axis, Role::Grid, at, &[&dims, &ints, &tune])?;
        }
        for worth in &body.worth {
            self.condition(&worth.condition, Role::Worth, at)?;
            self.known(&worth.condition, Role::Worth, at, &[&dims, &ints, &["SM_COUNT"]])?;
        }
        self.worth(body)?;
        for side in body.tensor_maps.iter().flat_map(|map| &map.rows_columns) {
            self.known(side, Role::Box, at, &[&ints, &tune])?;
        }
        self.tensor_maps(body)
    }

    fn worth(&self, body: &Body) -> Result<()> {
        let mut named = HashSet::new();
        for worth in &body.worth {
            let name = &worth.arg;
            let fail = |message: String| Err(Error::new(self.spans.of_worth(name), message));
            if !named.insert(name) {
                return fail(format!("what `{name}` is worth stands here already: join the two"));
            }
            let arg = self.kernel.args.iter().find(|arg| arg.name == *name);
            match arg.map(|arg| &arg.kind) {
                Some(ArgKind::Tensor { optional: true, .. }) => {}
                Some(_) => {
                    return fail(format!(
                        "`{name}` is always there: only an `Option<Tensor<…>>` may be made or not"
                    ));
                }
                None => return fail(format!("`{name}` is no argument: name one of the tensors")),
            }
        }
        Ok(())
    }

    fn tensor_maps(&self, body: &Body) -> Result<()> {
        let mut mapped = HashSet::new();
        for map in &body.tensor_maps {
            let name = &map.arg;
            let fail = |message: String| Err(Error::new(self.spans.of_tensor_map(name), message));
            if !body.family.has_copy_engine() {
                let with = Family::ALL.into_iter().filter(|family| family.has_copy_engine());
                let with: Vec<String> = with.map(|family| format!("`body {family}`")).collect();
                let (family, with) = (body.family, with.join(" or "));
                return fail(format!("{family} has no copy engine: only a {with} has `tensor_maps`"));
            }
            if !mapped.insert(name) {
                return fail(format!("`{name}` has a tensor map already: keep one"));
            }
            let arg = self.kernel.args.iter().find(|arg| arg.name == *name);
            match arg.map(|arg| &arg.kind) {
                Some(ArgKind::Tensor { dims, .. }) if (2..=5).contains(&dims.len()) => {}
                Some(_) => {
                    let message = "needs a tensor of 2 to 5 dimensions";
                    return fail(format!("a tensor map {message}: `{name}` is none"));
                }
                None => return fail(format!("`{name}` is no argument: name one of the tensors")),
            }
        }
        Ok(())
    }

    /// Variables of the generated binding before any parameter; a parameter becomes one in lower case.
    fn variables(&self) -> HashSet<String> {
        let args = self.kernel.args.iter().map(|arg| arg.name.clone());
        args.chain(self.kernel.dims().into_iter().map(str::to_owned)).collect()
    }

    /// The integer parameters of `specialize`.
    fn ints(&self) -> Vec<&str> {
        let ints = self.kernel.specialize.iter().filter(|param| matches!(param.values, SpecValues::Ints(_)));
        ints.map(|param| param.name.as_str()).collect()
    }

    fn known(&self, expr: &Expr, role: Role, body: usize, scope: &[&[&str]]) -> Result<()> {
        let unknown = expr.names().into_iter().find(|name| !scope.iter().any(|names| names.contains(name)));
        let Some(name) = unknown else { return Ok(()) };
        let allowed = scope.concat().join(", ");
        let allowed = if allowed.is_empty() { "numbers alone".to_owned() } else { allowed };
        let message = self.spans.unknown(name, role, &allowed);
        Err(Error::new(self.spans.of_name(name, expr, role, body), message))
    }

    fn condition(&self, expr: &Expr, role: Role, body: usize) -> Result<()> {
        if expr.is_condition() {
            return Ok(());
        }
        let message = format!("{role} must be a comparison, found `{expr}`");
        Err(Error::new(self.spans.of_expr(expr, role, body), message))
    }
}

fn taken_already(name: &str) -> String {
    format!("`{name}` already names something else, upper and lower case being alike: rename one")
}
