//! Checking of method calls and of calls by path.

use super::expr::{Checked, path_arguments, typed};
use super::infer::Ty;
use super::ir::{Expr, ExprKind, Intrinsic, Type};
use super::parse::Checker;
use super::reject;

impl Checker {
    pub(crate) fn method(&mut self, call: &syn::ExprMethodCall) -> Checked {
        reject::attributes(&call.attrs)?;
        if let Some(turbofish) = &call.turbofish {
            return Err(syn::Error::new_spanned(turbofish, "no method here takes type arguments"));
        }
        let name = call.method.to_string();
        if let Some(capture) = self.slice(&call.receiver) {
            return match (name.as_str(), call.args.first()) {
                ("len", None) => Ok(typed(Type::Usize, ExprKind::Len(capture))),
                ("len", Some(extra)) => Err(syn::Error::new_spanned(extra, "`len` takes no arguments")),
                _ => Err(syn::Error::new_spanned(
                    &call.method,
                    format!("`{name}` is not supported on a slice: index it, or use `len`"),
                )),
            };
        }
        let intrinsic = find_intrinsic(&call.method)?;
        let receiver = self.expr(&call.receiver, None)?;
        let Ok(ty) = self.infer.look(receiver.ty) else {
            return Err(syn::Error::new_spanned(
                &call.receiver,
                format!(
                    "the type of {} is not known here: write a suffix, as in `1.0f32` or `1i32`",
                    self.infer.describe(receiver.ty)
                ),
            ));
        };
        let mut arguments = vec![receiver];
        self.arguments(intrinsic, ty, &call.method, call.args.iter(), &mut arguments)
    }

    pub(crate) fn call(&mut self, call: &syn::ExprCall) -> Checked {
        reject::attributes(&call.attrs)?;
        let segments = match &*call.func {
            syn::Expr::Path(path) if path.qself.is_none() => path.path.segments.iter().collect(),
            _ => Vec::new(),
        };
        let ([ty, method], None) = (segments.as_slice(), path_arguments(&segments)) else {
            return Err(unknown_function(&call.func));
        };
        let Some(ty) = Type::from_name(&ty.ident.to_string()) else {
            return Err(unknown_function(&call.func));
        };
        let intrinsic = find_intrinsic(&method.ident)?;
        let mut inputs = call.args.iter();
        let mut arguments = Vec::new();
        if let Some(first) = inputs.next() {
            let receiver = self.expr(first, None)?;
            self.expect(receiver.ty, ty, first, &format!("`{}::{}`", ty.name(), method.ident))?;
            arguments.push(receiver);
        }
        self.arguments(intrinsic, ty, &method.ident, inputs, &mut arguments)
    }

    fn arguments<'a>(
        &mut self,
        intrinsic: Intrinsic,
        ty: Type,
        method: &syn::Ident,
        inputs: impl Iterator<Item = &'a syn::Expr>,
        arguments: &mut Vec<Expr<Ty>>,
    ) -> Checked {
        if !intrinsic.accepts(ty) {
            return Err(syn::Error::new_spanned(
                method,
                format!("`{method}` is a method of {}, found `{}`", intrinsic.receivers(), ty.name()),
            ));
        }
        let argument_type = if intrinsic == Intrinsic::Powi { Type::I32 } else { ty };
        for input in inputs {
            let argument = self.expr(input, None)?;
            self.expect(argument.ty, argument_type, input, &format!("the argument of `{method}`"))?;
            arguments.push(argument);
        }
        let (expected, found) = (intrinsic.arguments() + 1, arguments.len());
        if expected != found {
            return Err(syn::Error::new_spanned(
                method,
                format!("`{method}` takes {expected} value(s), receiver included, found {found}"),
            ));
        }
        Ok(typed(ty, ExprKind::Call(intrinsic, std::mem::take(arguments))))
    }
}

fn find_intrinsic(method: &syn::Ident) -> syn::Result<Intrinsic> {
    Intrinsic::from_name(&method.to_string()).ok_or_else(|| {
        syn::Error::new_spanned(
            method,
            format!("`{method}` is not supported in a device function: the methods are {}", Intrinsic::NAMES),
        )
    })
}

fn unknown_function(func: &syn::Expr) -> syn::Error {
    syn::Error::new_spanned(
        func,
        format!(
            "device functions cannot call other functions: the methods of numbers, such as `x.exp()` or \
             `f32::exp(x)`, are {}",
            Intrinsic::NAMES
        ),
    )
}
