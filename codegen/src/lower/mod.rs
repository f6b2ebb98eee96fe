//! Device functions: small Rust functions that also run on the GPU.
//!
//! A score function changes an attention score, a mask function decides whether a query sees a key. Both stay
//! ordinary Rust functions; this module reads their syntax tree, checks its types and prints it as a CUDA
//! functor. Arguments after the leading ones are *captures*: they become fields of the functor.
//!
//! ```
//! use tilewright_codegen::lower::{CaptureValue, DeviceFunction, FunctionKind, Value};
//!
//! let source = "fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
//!     cap * (score / cap).tanh()
//! }";
//! let softcap = DeviceFunction::from_source(FunctionKind::ScoreMod, source)?;
//! assert!(softcap.cuda().contains("return c_cap * tanhf(v_score / c_cap);"));
//!
//! let captures = [CaptureValue::F32(30.0)];
//! let capped = softcap.eval(1000.0, 0, 0, 0, 0, &captures)?;
//! assert_eq!(capped, Value::F32(30.0));
//! assert_eq!(softcap.pack(&captures, &[])?, 30.0f32.to_le_bytes());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The subset
//!
//! * `let` with or without a type; a later `let` may reuse a name. No `mut`, no assignment, no loops.
//! * `if` / `else` and blocks as expressions; the value of the function is its last expression, or
//!   `return …;` as its last statement.
//! * `f32`, `i32`, `u32`, `i64`, `usize` and `bool`, literals of them, `f32::INFINITY`, `i32::MAX` and so on.
//! * `+ - * / %`, comparisons, `&& || !`, `& | ^` on bools and integers, `as`.
//! * `exp`, `exp2`, `ln`, `log2`, `tanh`, `sqrt`, `sin`, `cos`, `floor`, `ceil`, `powi`, `abs`, `min`, `max`, as
//!   methods (`x.exp()`) or paths (`f32::exp(x)`).
//! * `doc[i]` and `doc.len()` of a slice capture.
//!
//! A text has at most 64 KiB, a number 256 digits; brackets nest 64 deep, expressions 100, and from one `;` or `,` to the next there
//! are at most 2000 tokens.
//!
//! Anything else is a [`syn::Error`] at the token that is not supported, which says what to write instead.
//!
//! # Meaning
//!
//! What Rust computes without panicking, the GPU computes too. Where a debug build of Rust would panic, the GPU
//! goes on: integer arithmetic wraps, integer division and remainder by zero give 0, an index out of range
//! reads the type's zero. `usize` is 64 bits wide, so a negative number cast to it is an index out of range.
//! Casts from `f32` saturate, NaN gives 0.
//!
//! [`DeviceFunction::eval`] is this meaning, run on the host. A compiled kernel agrees with it bit for bit,
//! except that `exp`, `exp2`, `ln`, `log2`, `tanh`, `sin` and `cos` may differ in their last bits, and that
//! the compiler may fuse `a * b + c` into one rounding unless it is given `--fmad=false`.
//!
//! # Derivatives
//!
//! Training needs the derivative of a score function by its score, everything else held constant. It is made from the
//! checked function by the rules of differentiation, so it is as exact as the function, and every function has one:
//!
//! ```
//! # use tilewright_codegen::lower::{CaptureValue, DeviceFunction, FunctionKind};
//! # let source = "fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
//! #     cap * (score / cap).tanh()
//! # }";
//! let softcap = DeviceFunction::from_source(FunctionKind::ScoreMod, source)?;
//! assert_eq!(softcap.gradient(0.0, 0, 0, 0, 0, &[CaptureValue::F32(30.0)])?, 1.0);
//! assert!(softcap.cuda_with_gradient().contains("float gradient(float v_score, int v_b,"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Where a function has no derivative, one side's is taken, or the value between:
//!
//! * `if`: the branch that is taken; conditions, integers and casts from and to them, `floor`, `ceil` and `%`'s jumps
//!   are steps, whose derivative is 0.
//! * `min`, `max` at a tie: the receiver's, so `score.max(low).min(high)` passes the gradient at its bounds. Where one
//!   side is NaN, the derivative is the other's, as the value is.
//! * `abs` at 0: 0. `sqrt` at 0: 0, though its slope grows without bound towards it.
//! * `ln` and `log2` at 0, and a division by 0: what IEEE arithmetic gives. The value is an infinity or NaN too.
//!
//! What overflows on the way to a value that is finite, as the `exp` of `1 / (1 + (-10.0 * score).exp())` far below 0, takes the
//! slope with it: it is 0 there, and no 0 · ∞ is formed.
//!
//! A branch that is not taken takes no part, so `if kv <= q { score } else { f32::NEG_INFINITY }` has the derivative 1
//! or 0. A score of -inf has the weight 0 in a softmax: its derivative need not be asked for, and may be anything.

mod calls;
mod captures;
mod cuda;
mod derivative;
mod eval;
mod expr;
mod infer;
mod ir;
mod parse;
mod reject;
mod rust;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use captures::{Capture, CaptureError, CaptureType, CaptureValue};
/// What the launcher, the macros and the tests need of a function.
#[doc(hidden)]
pub use captures::{CaptureLayout, FieldLayout};
#[doc(hidden)]
pub use cuda::DEVICE_PRELUDE;
#[doc(hidden)]
pub use eval::{EvalError, Evaluator, Value};
pub use ir::Type;

use crate::limits;

/// What a device function is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FunctionKind {
    /// `fn(score: f32, b: i32, h: i32, q: i32, kv: i32, captures…) -> f32`: the score that replaces `score`.
    ScoreMod,
    /// `fn(b: i32, h: i32, q: i32, kv: i32, captures…) -> bool`: whether query `q` sees key `kv`.
    MaskMod,
}

impl FunctionKind {
    /// The attribute that marks such a function.
    pub fn attribute(self) -> &'static str {
        match self {
            Self::ScoreMod => "score_mod",
            Self::MaskMod => "mask_mod",
        }
    }

    /// The name of the CUDA functor.
    pub fn functor(self) -> &'static str {
        match self {
            Self::ScoreMod => "ScoreMod",
            Self::MaskMod => "MaskMod",
        }
    }

    /// The parameters before the captures. Their names are free, their order and types are not.
    pub fn leading(self) -> &'static [(&'static str, Type)] {
        const ALL: &[(&str, Type)] =
            &[("score", Type::F32), ("b", Type::I32), ("h", Type::I32), ("q", Type::I32), ("kv", Type::I32)];
        match self {
            Self::ScoreMod => ALL,
            Self::MaskMod => &ALL[1..],
        }
    }

    /// The leading parameters as Rust writes them.
    pub(crate) fn leading_text(self) -> String {
        let parameters = self.leading().iter().map(|(name, ty)| format!("{name}: {}", ty.name()));
        parameters.collect::<Vec<_>>().join(", ")
    }

    /// The type of the function's value.
    pub fn returns(self) -> Type {
        match self {
            Self::ScoreMod => Type::F32,
            Self::MaskMod => Type::Bool,
        }
    }
}

/// A checked device function.
#[derive(Clone, Debug)]
pub struct DeviceFunction {
    name: String,
    kind: FunctionKind,
    captures: Vec<Capture>,
    body: ir::Body,
    /// The derivative by the score, of a score function.
    gradient: Option<ir::Body>,
}

/// The most bytes of a function's text. A page of formulas is 4 KiB.
pub const MAX_BYTES: usize = 64 << 10;

impl DeviceFunction {
    /// Checks a function. Attributes on the function itself are not looked at.
    ///
    /// # Errors
    /// At the first token that is outside the subset or has the wrong type.
    pub fn parse(kind: FunctionKind, item: &syn::ItemFn) -> syn::Result<Self> {
        limits::with_room(|| parse::function(kind, item))
    }

    /// Reads and checks a function from text, such as [`source_text`] makes.
    ///
    /// # Errors
    /// As [`DeviceFunction::parse`], and if the text is not one Rust function, or one too large or too deep to be read.
    pub fn from_source(kind: FunctionKind, source: &str) -> syn::Result<Self> {
        let read = || parse::function(kind, &syn::parse2(limits::tokens(source, MAX_BYTES)?)?);
        match limits::apart(|| read().ok()).flatten() {
            Some(function) => Ok(function),
            // An error has its place in the text, which this thread has to know.
            None => limits::with_room(read),
        }
    }

    /// The function's name in Rust.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the function is for.
    pub fn kind(&self) -> FunctionKind {
        self.kind
    }

    /// The captures, in the order of the parameters.
    pub fn captures(&self) -> &[Capture] {
        &self.captures
    }

    /// The functor: `struct ScoreMod { … };` or `struct MaskMod { … };`, with assertions that its layout is
    /// [`DeviceFunction::layout`]. It needs [`DEVICE_PRELUDE`] above it.
    pub fn cuda(&self) -> String {
        cuda::functor(self, false)
    }

    /// The functor of a score function with a second method, `gradient`: the derivative of the first by the score, of the
    /// same parameters. The layout is the same. Of a mask function, [`DeviceFunction::cuda`].
    pub fn cuda_with_gradient(&self) -> String {
        cuda::functor(self, true)
    }

    /// The functor of a function that is not there: the score as it is, or every key kept.
    pub fn absent(kind: FunctionKind) -> String {
        cuda::absent(kind, false)
    }

    /// [`DeviceFunction::absent`] with the method `gradient` of a score function, which is 1.
    pub fn absent_with_gradient(kind: FunctionKind) -> String {
        cuda::absent(kind, true)
    }

    /// The derivative of a score function as an expression of Rust, which has the meaning of the CUDA text and does not
    /// panic; `None` of a mask function. `parameters` are the names of the leading parameters where it stands, `captures`
    /// expressions of the captures: numbers, bools and slices, in order.
    pub fn gradient_expression(
        &self,
        parameters: &[proc_macro2::Ident],
        captures: &[proc_macro2::TokenStream],
    ) -> Option<proc_macro2::TokenStream> {
        self.gradient.as_ref().map(|body| rust::expression(body, parameters, captures))
    }

    /// Where the functor keeps the captures.
    pub fn layout(&self) -> CaptureLayout {
        CaptureLayout::of(&self.captures)
    }

    /// The functor's bytes. `device_pointers` are the addresses of the slice captures' contents on the device,
    /// one for each slice, in order; an empty slice may have any address.
    ///
    /// # Errors
    /// If the values or the pointers are not those of the declared captures.
    pub fn pack(&self, captures: &[CaptureValue], device_pointers: &[u64]) -> Result<Vec<u8>, CaptureError> {
        captures::pack(&self.name, &self.captures, captures, device_pointers)
    }

    /// Runs the function on the host with the meaning of the CUDA text. A mask function ignores `score`.
    ///
    /// # Errors
    /// If the values are not those of the declared captures.
    pub fn eval(
        &self,
        score: f32,
        b: i32,
        h: i32,
        q: i32,
        kv: i32,
        captures: &[CaptureValue],
    ) -> Result<Value, EvalError> {
        eval::run(self, score, [b, h, q, kv], captures)
    }

    /// The derivative of a score function's value by `score`, with the meaning of the CUDA text: see the
    /// [module](self#derivatives). 0 of a mask function, which has no score.
    ///
    /// # Errors
    /// If the values are not those of the declared captures.
    pub fn gradient(
        &self,
        score: f32,
        b: i32,
        h: i32,
        q: i32,
        kv: i32,
        captures: &[CaptureValue],
    ) -> Result<f32, EvalError> {
        eval::run_gradient(self, score, [b, h, q, kv], captures)
    }
}

/// The text of a device function, without attributes and visibility: what [`DeviceFunction::from_source`] reads
/// back. It depends on the tokens alone, not on the layout of the user's file.
pub fn source_text(item: &syn::ItemFn) -> String {
    let bare = syn::ItemFn { attrs: Vec::new(), vis: syn::Visibility::Inherited, ..item.clone() };
    prettyplease::unparse(&syn::File {
        shebang: None,
        frontmatter: None,
        attrs: Vec::new(),
        items: vec![syn::Item::Fn(bare)],
    })
}

#[cfg(test)]
mod tests;
