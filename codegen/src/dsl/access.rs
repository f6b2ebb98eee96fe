//! What a kernel does with a tensor, and how far two schedules may differ in what they leave there.

use syn::parse::ParseStream;
use syn::{Attribute, Ident, Result, Token};

/// What a kernel does with the elements of a tensor argument. The launcher's checks and the tuner's go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `Tensor`: reads them.
    Read,
    /// `out Tensor`: writes every one of them, whatever they held.
    Out,
    /// `inout Tensor`: what they hold before decides what they hold after, or some stay as they are.
    InOut,
    /// `scratch Tensor`: works in them; they may hold anything before, and hold nothing of use after.
    Scratch,
    /// `counters Tensor`: counts in them. They are 0 before, and 0 again after.
    Counters,
}

impl Access {
    /// Whether the kernel writes.
    pub const fn writes(self) -> bool {
        !matches!(self, Access::Read)
    }

    /// Whether what it leaves is a result.
    pub const fn is_result(self) -> bool {
        matches!(self, Access::Out | Access::InOut)
    }

    pub(super) fn from_keyword(word: &str) -> Option<Self> {
        Some(match word {
            "out" => Access::Out,
            "inout" => Access::InOut,
            "scratch" => Access::Scratch,
            "counters" => Access::Counters,
            _ => return None,
        })
    }

    /// The keyword before `Tensor`, where there is one.
    pub(super) fn parse(input: ParseStream) -> Result<Self> {
        if input.peek(Token![mut]) {
            return Err(input.error(
                "a tensor that is written says how: `out` (all of it), `inout` (changed in place), `scratch` or `counters`",
            ));
        }
        let ahead = input.fork();
        let word: Ident = ahead.parse()?;
        let Some(access) = Access::from_keyword(&word.to_string()) else { return Ok(Access::Read) };
        input.parse::<Ident>()?;
        Ok(access)
    }
}

/// How far the results of two schedules of a kernel may be apart, in one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tolerance {
    /// Not at all: bit for bit.
    Exact,
    /// `#[tolerance(1e-2)]`: by this Frobenius norm of the difference, relative to that of the result: schedules sum in different orders.
    Close(f64),
    /// `#[tolerance(share = 0.01)]`: in this share of the elements: where a decision falls within rounding, another one is as good.
    Share(f64),
    /// `#[tolerance(any)]`: there are several right results. The kernel's `check.rs` tells them from wrong ones.
    Any,
}

impl Tolerance {
    /// The argument of `#[tolerance(…)]`.
    pub(super) fn parse(attr: &Attribute) -> Result<Self> {
        let bound = |expr: &syn::Expr| {
            unsigned_attr(expr).filter(|bound| *bound > 0.0 && *bound <= 1.0).ok_or_else(|| {
                syn::Error::new_spanned(
                    expr,
                    "a tolerance is a number above 0 and up to 1: write `#[tolerance(1e-2)]`",
                )
            })
        };
        let forms = "a tolerance is one of `#[tolerance(1e-2)]`, `#[tolerance(share = 0.01)]` and `#[tolerance(any)]`";
        let argument = attr.parse_args().map_err(|error| syn::Error::new(error.span(), forms))?;
        match argument {
            syn::Expr::Path(path) if path.path.is_ident("any") => Ok(Tolerance::Any),
            syn::Expr::Assign(assign) => match &*assign.left {
                syn::Expr::Path(path) if path.path.is_ident("share") => {
                    Ok(Tolerance::Share(bound(&assign.right)?))
                }
                other => Err(syn::Error::new_spanned(other, forms)),
            },
            word @ syn::Expr::Path(_) => Err(syn::Error::new_spanned(word, forms)),
            number => Ok(Tolerance::Close(bound(&number)?)),
        }
    }
}

/// A number as it is written.
fn unsigned_attr(expr: &syn::Expr) -> Option<f64> {
    match expr {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Float(float), .. }) if float.suffix().is_empty() => {
            float.base10_parse().ok()
        }
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Int(int), .. }) if int.suffix().is_empty() => {
            int.base10_parse().ok()
        }
        _ => None,
    }
}
