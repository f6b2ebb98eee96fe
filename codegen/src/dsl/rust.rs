//! Expressions as Rust, with the meaning of [`Expr::eval`]: what divides by zero or overflows has no value.

use super::expr::{Expr, Function};
use super::names;
use proc_macro2::{Literal, TokenStream};
use quote::{format_ident, quote};

impl Expr {
    /// Whether there are values of its names for which it has none.
    pub(crate) fn is_partial(&self) -> bool {
        match self {
            Expr::Int(_) | Expr::Name(_) => false,
            Expr::Binary(op, a, b) => op.checked().is_some() || a.is_partial() || b.is_partial(),
            Expr::Call(function, a, b) => {
                matches!(function, Function::CeilDiv) || a.is_partial() || b.is_partial()
            }
            Expr::If(c, a, b) => c.is_partial() || a.is_partial() || b.is_partial(),
        }
    }

    /// As an `Option<i64>` over `i64` variables; [`partial`](Self::is_partial) parts end the closure around it with `?`.
    pub(crate) fn to_rust_option(&self) -> TokenStream {
        self.checked().unwrap_or_else(|| {
            let value = self.to_rust();
            quote!(Some(#value))
        })
    }

    /// As an `i64` where that is the type asked for.
    pub(crate) fn to_rust(&self) -> TokenStream {
        match self {
            Expr::Int(value) => {
                let literal = Literal::i64_unsuffixed(*value);
                quote!(#literal)
            }
            _ => self.typed(),
        }
    }

    /// As a `bool`: whether the value is not 0.
    pub(crate) fn to_rust_bool(&self) -> TokenStream {
        match self {
            Expr::Binary(op, a, b) if op.is_logical() => {
                let (a, b, symbol) = (a.logical_operand(), b.logical_operand(), op.token());
                quote!(#a #symbol #b)
            }
            Expr::Binary(op, a, b) if op.is_condition() => {
                let (left, right, symbol) = (a.typed(), b.to_rust(), op.token());
                let left = if matches!(**a, Expr::If(..)) { quote!((#left)) } else { left };
                let right = if matches!(**b, Expr::If(..)) { quote!((#right)) } else { right };
                quote!(#left #symbol #right)
            }
            Expr::If(c, a, b) => {
                let (c, a, b) = (c.to_rust_bool(), a.to_rust_bool(), b.to_rust_bool());
                quote!(if #c { #a } else { #b })
            }
            _ => {
                let value = self.typed();
                quote!(#value != 0)
            }
        }
    }

    /// In parentheses where it could bind differently beside `&&` or `||`.
    fn logical_operand(&self) -> TokenStream {
        let tokens = self.to_rust_bool();
        match self {
            Expr::If(..) => quote!((#tokens)),
            Expr::Binary(op, ..) if op.is_logical() => quote!((#tokens)),
            _ => tokens,
        }
    }

    /// As an `i64` wherever it stands: nothing around it need say the type of its literals.
    fn typed(&self) -> TokenStream {
        if let Some(checked) = self.checked() {
            return quote!(#checked?);
        }
        match self {
            Expr::Int(value) => {
                let literal = Literal::i64_suffixed(*value);
                quote!(#literal)
            }
            Expr::Name(name) => {
                let ident = names::variable(name);
                quote!(#ident)
            }
            Expr::Binary(..) => {
                let condition = self.to_rust_bool();
                quote!(i64::from(#condition))
            }
            Expr::Call(function, a, b) => {
                let (name, a, b) = (format_ident!("{}", function.name()), a.to_rust(), b.to_rust());
                quote!(i64::#name(#a, #b))
            }
            Expr::If(c, a, b) => {
                let (c, a, b) = (c.to_rust_bool(), a.typed(), b.typed());
                quote!(if #c { #a } else { #b })
            }
        }
    }

    /// An operation that may have no value, as an `Option<i64>`.
    fn checked(&self) -> Option<TokenStream> {
        let (function, a, b) = match self {
            Expr::Binary(op, a, b) => {
                let name = format_ident!("{}", op.checked()?);
                (quote!(i64::#name), a, b)
            }
            // A function of the library's: each operand is written once, however deep they nest.
            Expr::Call(Function::CeilDiv, a, b) => (quote!(Binder::ceil_div), a, b),
            _ => return None,
        };
        let (a, b) = (a.to_rust(), b.to_rust());
        Some(quote!(#function(#a, #b)))
    }
}
