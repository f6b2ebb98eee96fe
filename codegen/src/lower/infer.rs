//! Types of literals without a suffix, found from how they are used, as rustc finds them.
//!
//! The rules are a subset of rustc's: whatever is accepted here has the type that rustc gives it. The one place
//! where rustc would choose a type that device functions lack (`f64` for a float literal nobody constrains) is
//! an error here.

use proc_macro2::Span;

use super::ir::{Expr, ExprKind, Local, Type};

/// A type that may still be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ty {
    Known(Type),
    Open(usize),
}

/// What an open type can become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Int,
    Float,
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    Free(Class),
    Is(Ty),
}

/// A demand on a type that may only be known at the end of the function.
enum Demand {
    /// An integer literal: its value must fit.
    Fits(i128),
    /// The operand of a unary minus: its type must be signed.
    Signed,
    /// A float literal: someone must have said `f32`.
    Constrained,
}

/// The open types of one function and what is asked of them.
#[derive(Default)]
pub(crate) struct Infer {
    slots: Vec<Slot>,
    demands: Vec<(Ty, Span, Demand)>,
}

impl Infer {
    fn open(&mut self, class: Class) -> Ty {
        self.slots.push(Slot::Free(class));
        Ty::Open(self.slots.len() - 1)
    }

    /// The type of an integer literal, `suffix` or open.
    pub(crate) fn int_literal(&mut self, value: i128, suffix: Option<Type>, span: Span) -> Ty {
        let ty = suffix.map_or_else(|| self.open(Class::Int), Ty::Known);
        self.demands.push((ty, span, Demand::Fits(value)));
        ty
    }

    /// The type of a float literal, `suffix` or open.
    pub(crate) fn float_literal(&mut self, suffix: Option<Type>, span: Span) -> Ty {
        let ty = suffix.map_or_else(|| self.open(Class::Float), Ty::Known);
        self.demands.push((ty, span, Demand::Constrained));
        ty
    }

    /// Asks that `ty` turns out to be signed.
    pub(crate) fn require_signed(&mut self, ty: Ty, span: Span) {
        self.demands.push((ty, span, Demand::Signed));
    }

    /// What is known of `ty` now.
    pub(crate) fn resolve(&self, ty: Ty) -> Ty {
        match ty {
            Ty::Open(slot) => match self.slots[slot] {
                Slot::Is(other) => self.resolve(other),
                Slot::Free(_) => ty,
            },
            known => known,
        }
    }

    /// The type, or the class of what it can still become.
    pub(crate) fn look(&self, ty: Ty) -> Result<Type, Class> {
        match self.resolve(ty) {
            Ty::Known(ty) => Ok(ty),
            Ty::Open(slot) => match self.slots[slot] {
                Slot::Free(class) => Err(class),
                Slot::Is(other) => self.look(other),
            },
        }
    }

    /// Makes the two types one; `false` if they cannot be.
    #[must_use]
    pub(crate) fn unify(&mut self, a: Ty, b: Ty) -> bool {
        let (a, b) = (self.resolve(a), self.resolve(b));
        let (open, other) = match (a, b) {
            (Ty::Known(a), Ty::Known(b)) => return a == b,
            (Ty::Open(slot), other) | (other, Ty::Open(slot)) => (slot, other),
        };
        let Err(class) = self.look(Ty::Open(open)) else { return false };
        let fits = match self.look(other) {
            Ok(ty) => match class {
                Class::Int => ty.is_int(),
                Class::Float => ty == Type::F32,
            },
            Err(other_class) => class == other_class,
        };
        if fits && other != Ty::Open(open) {
            self.slots[open] = Slot::Is(other);
        }
        fits
    }

    /// How an error message calls `ty`.
    pub(crate) fn describe(&self, ty: Ty) -> String {
        match self.look(ty) {
            Ok(ty) => format!("`{}`", ty.name()),
            Err(Class::Int) => "an integer".into(),
            Err(Class::Float) => "a float".into(),
        }
    }

    /// The final type: an integer that nobody constrained is an `i32`, as in Rust.
    pub(crate) fn finish(&self, ty: Ty) -> Type {
        match self.look(ty) {
            Ok(ty) => ty,
            Err(Class::Int) => Type::I32,
            Err(Class::Float) => Type::F32,
        }
    }

    /// Checks every demand, in the order they were made.
    pub(crate) fn check(&self) -> syn::Result<()> {
        for (ty, span, demand) in &self.demands {
            let found = self.finish(*ty);
            let message = match demand {
                Demand::Fits(value) => match found.int_range() {
                    Some((low, high)) if !(low..=high).contains(value) => {
                        format!("{value} does not fit `{}`, which goes from {low} to {high}", found.name())
                    }
                    _ => continue,
                },
                Demand::Signed if !found.is_signed() => {
                    format!(
                        "`-` needs a signed number, found `{}`: cast it to a signed type first",
                        found.name()
                    )
                }
                Demand::Constrained if self.look(*ty).is_err() => {
                    "nothing says whether this literal is an `f32`: write the suffix, as in `1.0f32`".into()
                }
                _ => continue,
            };
            return Err(syn::Error::new(*span, message));
        }
        Ok(())
    }

    /// The local with its final type.
    pub(crate) fn close_local(&self, local: Local<Ty>) -> Local {
        Local { ty: self.finish(local.ty), name: local.name }
    }

    /// The expression with its final types.
    pub(crate) fn close(&self, expr: Expr<Ty>) -> Expr {
        let close = |expr: Box<Expr<Ty>>| Box::new(self.close(*expr));
        let kind = match expr.kind {
            ExprKind::Float(value) => ExprKind::Float(value),
            ExprKind::Int(value) => ExprKind::Int(value),
            ExprKind::Bool(value) => ExprKind::Bool(value),
            ExprKind::Local(id) => ExprKind::Local(id),
            ExprKind::Capture(id) => ExprKind::Capture(id),
            ExprKind::Index(id, index) => ExprKind::Index(id, close(index)),
            ExprKind::Len(id) => ExprKind::Len(id),
            ExprKind::Unary(op, operand) => ExprKind::Unary(op, close(operand)),
            ExprKind::Binary(op, left, right) => ExprKind::Binary(op, close(left), close(right)),
            ExprKind::Cast(operand) => ExprKind::Cast(close(operand)),
            ExprKind::Call(intrinsic, arguments) => ExprKind::Call(
                intrinsic,
                arguments.into_iter().map(|argument| self.close(argument)).collect(),
            ),
            ExprKind::If(condition, yes, no) => ExprKind::If(close(condition), close(yes), close(no)),
            ExprKind::Block(lets, value) => ExprKind::Block(
                lets.into_iter().map(|(id, value)| (id, self.close(value))).collect(),
                close(value),
            ),
        };
        Expr { ty: self.finish(expr.ty), kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_type_takes_the_type_of_its_use_and_keeps_it() {
        let mut infer = Infer::default();
        let a = infer.int_literal(1, None, Span::call_site());
        let b = infer.int_literal(2, None, Span::call_site());
        assert!(infer.unify(a, b) && infer.unify(a, a));
        assert!(infer.unify(b, Ty::Known(Type::Usize)));
        assert_eq!(infer.finish(a), Type::Usize);
        assert!(!infer.unify(a, Ty::Known(Type::I32)));
        infer.check().unwrap();
    }

    #[test]
    fn integers_fall_back_to_i32_and_floats_do_not_fall_back() {
        let mut infer = Infer::default();
        let int = infer.int_literal(1, None, Span::call_site());
        assert!(!infer.unify(int, Ty::Known(Type::F32)));
        assert_eq!(infer.finish(int), Type::I32);
        let float = infer.float_literal(None, Span::call_site());
        assert!(!infer.unify(float, int));
        assert!(infer.check().unwrap_err().to_string().contains("1.0f32"));
    }
}
