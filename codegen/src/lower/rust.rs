//! The typed form as Rust: a derivative that the host runs without the interpreter.
//!
//! It has the device's meaning, so it never panics: `let`s were moved, and what guarded an index in the function may no
//! longer stand around it.

use proc_macro2::{Ident, Literal, TokenStream};
use quote::{format_ident, quote};

use super::ir::{BinaryOp, Body, Expr, ExprKind, Intrinsic, LocalId, Type, UnaryOp};

/// An expression of the value of `body`. `parameters` are the names of its first locals, `captures` expressions of the
/// captures: numbers, bools and slices.
pub(crate) fn expression(body: &Body, parameters: &[Ident], captures: &[TokenStream]) -> TokenStream {
    Printer { parameters, captures }.expr(&body.value)
}

struct Printer<'a> {
    parameters: &'a [Ident],
    captures: &'a [TokenStream],
}

fn type_name(ty: Type) -> TokenStream {
    let name = format_ident!("{}", ty.name());
    quote!(::core::primitive::#name)
}

impl Printer<'_> {
    fn local(&self, id: LocalId) -> Ident {
        self.parameters.get(id).cloned().unwrap_or_else(|| format_ident!("__local_{id}"))
    }

    /// Tokens that stand as an operand or a receiver.
    fn expr(&self, expr: &Expr) -> TokenStream {
        match &expr.kind {
            ExprKind::Float(value) => {
                // Bits and not digits: there are no literals of infinities and NaN.
                let (ty, bits) = (type_name(Type::F32), Literal::u32_suffixed(value.to_bits()));
                quote!(#ty::from_bits(#bits))
            }
            ExprKind::Int(value) => {
                let (ty, digits) = (type_name(expr.ty), Literal::u128_unsuffixed(value.unsigned_abs()));
                let sign = (*value < 0).then(|| quote!(-));
                quote!({ const VALUE: #ty = #sign #digits; VALUE })
            }
            ExprKind::Bool(value) => quote!(#value),
            ExprKind::Local(id) => {
                let name = self.local(*id);
                quote!(#name)
            }
            ExprKind::Capture(id) => self.captures[*id].clone(),
            ExprKind::Len(id) => {
                let slice = &self.captures[*id];
                quote!(#slice.len())
            }
            ExprKind::Index(id, index) => {
                let (slice, index) = (&self.captures[*id], self.expr(index));
                quote!(#slice.get(#index).copied().unwrap_or_default())
            }
            ExprKind::Unary(op, operand) => {
                let value = self.expr(operand);
                match op {
                    UnaryOp::Neg if expr.ty.is_int() => quote!(#value.wrapping_neg()),
                    UnaryOp::Neg => quote!((-#value)),
                    UnaryOp::Not => quote!((!#value)),
                }
            }
            ExprKind::Binary(op, left, right) => {
                let operands = left.ty;
                binary(*op, operands, &self.expr(left), &self.expr(right))
            }
            ExprKind::Cast(operand) => {
                let (value, ty) = (self.expr(operand), type_name(expr.ty));
                quote!((#value as #ty))
            }
            ExprKind::Call(intrinsic, arguments) => {
                let name = match intrinsic {
                    Intrinsic::Abs if expr.ty.is_int() => format_ident!("wrapping_abs"),
                    _ => format_ident!("{}", intrinsic.name()),
                };
                let mut values = arguments.iter().map(|argument| self.expr(argument));
                let receiver = values.next();
                quote!(#receiver.#name(#(#values),*))
            }
            ExprKind::If(condition, yes, no) => {
                let (condition, yes, no) = (self.expr(condition), self.expr(yes), self.expr(no));
                quote!((if #condition { #yes } else { #no }))
            }
            ExprKind::Block(lets, value) => {
                let lets = lets.iter().map(|(local, value)| {
                    let (name, ty, value) = (self.local(*local), type_name(value.ty), self.expr(value));
                    quote!(let #name: #ty = #value;)
                });
                let value = self.expr(value);
                quote!({ #(#lets)* #value })
            }
        }
    }
}

fn binary(op: BinaryOp, operands: Type, left: &TokenStream, right: &TokenStream) -> TokenStream {
    if operands.is_int() {
        match op {
            BinaryOp::Add => return quote!(#left.wrapping_add(#right)),
            BinaryOp::Sub => return quote!(#left.wrapping_sub(#right)),
            BinaryOp::Mul => return quote!(#left.wrapping_mul(#right)),
            BinaryOp::Div => return quote!((match #right { 0 => 0, by => #left.wrapping_div(by) })),
            BinaryOp::Rem => return quote!((match #right { 0 => 0, by => #left.wrapping_rem(by) })),
            _ => {}
        }
    }
    let symbol: TokenStream = match op {
        BinaryOp::Add => quote!(+),
        BinaryOp::Sub => quote!(-),
        BinaryOp::Mul => quote!(*),
        BinaryOp::Div => quote!(/),
        BinaryOp::Rem => quote!(%),
        BinaryOp::And => quote!(&&),
        BinaryOp::Or => quote!(||),
        BinaryOp::BitAnd => quote!(&),
        BinaryOp::BitOr => quote!(|),
        BinaryOp::BitXor => quote!(^),
        BinaryOp::Eq => quote!(==),
        BinaryOp::Ne => quote!(!=),
        BinaryOp::Lt => quote!(<),
        BinaryOp::Le => quote!(<=),
        BinaryOp::Gt => quote!(>),
        BinaryOp::Ge => quote!(>=),
    };
    quote!((#left #symbol #right))
}
