//! From the syntax tree to the typed form: the signature, blocks and `let`s. Expressions are in `expr`.

use quote::ToTokens;
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{FnArg, Ident, Pat, Stmt};

use super::captures::{Capture, CaptureType};
use super::derivative;
use super::infer::{Infer, Ty};
use super::ir::{Body, Expr, ExprKind, Local, LocalId, Type};
use super::reject;
use super::{DeviceFunction, FunctionKind};

/// What a name in scope means.
#[derive(Clone, Copy)]
pub(crate) enum Binding {
    Local(LocalId),
    Capture(usize),
}

/// The state of checking one function.
pub(crate) struct Checker {
    pub(crate) infer: Infer,
    pub(crate) locals: Vec<Local<Ty>>,
    pub(crate) captures: Vec<Capture>,
    pub(crate) scope: Vec<(String, Binding)>,
    pub(crate) depth: usize,
}

/// Checks `item` and makes its typed form.
pub(crate) fn function(kind: FunctionKind, item: &syn::ItemFn) -> syn::Result<DeviceFunction> {
    reject::signature(item)?;
    let mut checker = Checker {
        infer: Infer::default(),
        locals: Vec::new(),
        captures: Vec::new(),
        scope: Vec::new(),
        depth: 0,
    };
    checker.parameters(kind, &item.sig)?;
    let returns = return_type(kind, &item.sig)?;
    let value = checker.block(&item.block, true)?;
    if !checker.infer.unify(value.ty, Ty::Known(returns)) {
        let tail = item.block.stmts.last().map_or(item.block.to_token_stream(), ToTokens::to_token_stream);
        let found = checker.infer.describe(value.ty);
        return Err(syn::Error::new_spanned(
            tail,
            format!("a {} returns `{}`, found {found}", kind.attribute(), returns.name()),
        ));
    }
    checker.infer.check()?;
    let Checker { infer, locals, captures, .. } = checker;
    let locals = locals.into_iter().map(|local| infer.close_local(local)).collect();
    let body = Body { locals, value: infer.close(value) };
    let gradient =
        (kind == FunctionKind::ScoreMod).then(|| derivative::by_score(&body, kind.leading().len()));
    Ok(DeviceFunction { name: item.sig.ident.unraw().to_string(), kind, captures, body, gradient })
}

fn return_type(kind: FunctionKind, signature: &syn::Signature) -> syn::Result<Type> {
    let expected = kind.returns();
    let message = |found: &str| {
        let expected = expected.name();
        format!("a {} returns `{expected}`, found `{found}`: write `-> {expected}`", kind.attribute())
    };
    match &signature.output {
        syn::ReturnType::Default => Err(syn::Error::new_spanned(&signature.ident, message("()"))),
        syn::ReturnType::Type(_, ty) => match named_type(ty) {
            Some(found) if found == expected => Ok(expected),
            _ => Err(syn::Error::new_spanned(ty, message(&reject::quoted(ty)))),
        },
    }
}

/// The type that a bare name such as `f32` stands for.
fn named_type(ty: &syn::Type) -> Option<Type> {
    match ty {
        syn::Type::Path(path) if path.qself.is_none() => {
            path.path.get_ident().and_then(|ident| Type::from_name(&ident.to_string()))
        }
        syn::Type::Group(group) => named_type(&group.elem),
        syn::Type::Paren(paren) => named_type(&paren.elem),
        _ => None,
    }
}

/// The type of a `let` or of a cast.
pub(crate) fn value_type(ty: &syn::Type) -> syn::Result<Type> {
    named_type(ty).ok_or_else(|| {
        let found = reject::quoted(ty);
        syn::Error::new_spanned(
            ty,
            format!("`{found}` is not a type of device functions: use {}", Type::NAMES),
        )
    })
}

fn capture_type(ty: &syn::Type) -> syn::Result<CaptureType> {
    let found = match ty {
        syn::Type::Group(group) => return capture_type(&group.elem),
        syn::Type::Paren(paren) => return capture_type(&paren.elem),
        syn::Type::Reference(reference) if reference.mutability.is_none() && reference.lifetime.is_none() => {
            match &*reference.elem {
                syn::Type::Slice(slice) => named_type(&slice.elem).and_then(CaptureType::slice),
                _ => None,
            }
        }
        other => named_type(other).and_then(CaptureType::scalar),
    };
    found.ok_or_else(|| {
        let written = reject::quoted(ty);
        syn::Error::new_spanned(
            ty,
            format!("`{written}` cannot be captured: a capture is {}", CaptureType::NAMES),
        )
    })
}

/// The name that a simple pattern binds.
fn binding_name<'a>(pattern: &'a Pat, what: &str) -> syn::Result<&'a Ident> {
    match pattern {
        Pat::Ident(pat) => {
            if let Some(token) = &pat.mutability {
                return Err(syn::Error::new_spanned(
                    token,
                    "`mut` is not supported in a device function: bind the new value with another `let`, which \
                     may have the same name",
                ));
            }
            reject::attributes(&pat.attrs)?;
            if pat.by_ref.is_some() || pat.subpat.is_some() {
                return Err(syn::Error::new_spanned(pattern, format!("{what} must be a plain name")));
            }
            Ok(&pat.ident)
        }
        _ => Err(syn::Error::new_spanned(
            pattern,
            format!("patterns are not supported in a device function: {what} must be a plain name"),
        )),
    }
}

impl Checker {
    fn parameters(&mut self, kind: FunctionKind, signature: &syn::Signature) -> syn::Result<()> {
        let leading = kind.leading();
        for (at, input) in signature.inputs.iter().enumerate() {
            let parameter = match input {
                FnArg::Typed(parameter) => parameter,
                FnArg::Receiver(receiver) => {
                    return Err(syn::Error::new_spanned(
                        receiver,
                        "`self` is not supported: a device function is a free function, its captures are \
                         parameters",
                    ));
                }
            };
            reject::attributes(&parameter.attrs)?;
            let ident = binding_name(&parameter.pat, "a parameter")?;
            let name = ident.unraw().to_string();
            if self.scope.iter().any(|(other, _)| *other == name) {
                return Err(syn::Error::new_spanned(ident, format!("parameter `{name}` appears twice")));
            }
            if let Some((leading_name, ty)) = leading.get(at) {
                if named_type(&parameter.ty) != Some(*ty) {
                    return Err(syn::Error::new_spanned(
                        &parameter.ty,
                        format!(
                            "parameter {} of a {} is `{leading_name}: {}`: the leading parameters are `{}`, \
                             captures follow them",
                            at + 1,
                            kind.attribute(),
                            ty.name(),
                            kind.leading_text()
                        ),
                    ));
                }
                self.bind_local(name, Ty::Known(*ty));
            } else {
                let ty = capture_type(&parameter.ty)?;
                self.scope.push((name.clone(), Binding::Capture(self.captures.len())));
                self.captures.push(Capture { name, ty });
            }
        }
        if signature.inputs.len() < leading.len() {
            return Err(syn::Error::new(
                signature.paren_token.span.join(),
                format!(
                    "a {} takes `{}` and then its captures: {} of these {} parameters are missing",
                    kind.attribute(),
                    kind.leading_text(),
                    leading.len() - signature.inputs.len(),
                    leading.len()
                ),
            ));
        }
        Ok(())
    }

    fn bind_local(&mut self, name: String, ty: Ty) -> LocalId {
        let id = self.locals.len();
        self.scope.push((name.clone(), Binding::Local(id)));
        self.locals.push(Local { name, ty });
        id
    }

    /// A block's `let`s and its value. Only a function's own block (`outermost`) may end in `return`.
    pub(crate) fn block(&mut self, block: &syn::Block, outermost: bool) -> syn::Result<Expr<Ty>> {
        let outer_scope = self.scope.len();
        let Some((last, statements)) = block.stmts.split_last() else {
            return Err(syn::Error::new(
                block.brace_token.span.join(),
                "this block has no value: end it in an expression",
            ));
        };
        let mut lets = Vec::new();
        for statement in statements {
            lets.push(self.statement(statement)?);
        }
        let value = match last {
            Stmt::Expr(syn::Expr::Return(tail), _) if outermost => match &tail.expr {
                Some(value) => self.expr(value, None)?,
                None => return Err(syn::Error::new_spanned(tail, "`return` needs a value here")),
            },
            Stmt::Expr(value, None) => self.expr(value, None)?,
            Stmt::Local(local) => {
                self.statement(last)?;
                return Err(syn::Error::new(
                    local.semi_token.span(),
                    "this block ends in a `let` and has no value: end it in an expression",
                ));
            }
            other => return Err(reject::statement(other)),
        };
        self.scope.truncate(outer_scope);
        if lets.is_empty() {
            return Ok(value);
        }
        Ok(Expr { ty: value.ty, kind: ExprKind::Block(lets, Box::new(value)) })
    }

    fn statement(&mut self, statement: &Stmt) -> syn::Result<(LocalId, Expr<Ty>)> {
        let Stmt::Local(local) = statement else { return Err(reject::statement(statement)) };
        reject::attributes(&local.attrs)?;
        let (pattern, annotation) = match &local.pat {
            Pat::Type(typed) => (&*typed.pat, Some(&*typed.ty)),
            pattern => (pattern, None),
        };
        let ident = binding_name(pattern, "what a `let` binds")?;
        let Some(init) = &local.init else {
            return Err(syn::Error::new_spanned(ident, "this `let` has no value: write `= …` here"));
        };
        if let Some((token, _)) = &init.diverge {
            return Err(syn::Error::new_spanned(
                token,
                "`let … else` is not supported in a device function: use `if` and `else`",
            ));
        }
        let value = self.expr(&init.expr, None)?;
        if let Some(annotation) = annotation {
            let ty = value_type(annotation)?;
            self.expect(value.ty, ty, &init.expr, "this `let`")?;
        }
        Ok((self.bind_local(ident.unraw().to_string(), value.ty), value))
    }
}
