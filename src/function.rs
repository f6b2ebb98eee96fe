//! Device functions at run time: what `#[score_mod]` and `#[mask_mod]` implement.
//!
//! ```
//! use tilewright::{DeviceFn, MaskMod, mask_mod};
//!
//! /// Keys at most `window` behind the query.
//! #[mask_mod]
//! fn window_of(b: i32, h: i32, q: i32, kv: i32, window: i32) -> bool {
//!     q >= kv && q - kv < window
//! }
//!
//! // The function is still a function, and there is a struct of its captures.
//! assert!(window_of(0, 0, 5, 3, 4));
//! let mask = window_of { window: 4 };
//! assert_eq!(mask.name(), "window_of");
//! assert!(!mask.keep(0, 0, 5, 1));
//! ```

use std::sync::Arc;
pub use tilewright_codegen::lower::CaptureValue;

/// A function that runs on the host and, from its source text, on the GPU.
///
/// The attribute macros implement it on the struct of the function's captures. Whoever implements it by hand
/// promises that the source text is the function that [`ScoreMod::score`] or [`MaskMod::keep`] runs.
pub trait DeviceFn: Send + Sync + 'static {
    /// The function's name.
    fn name(&self) -> &str;

    /// The function's text in Rust, which [`DeviceFunction::from_source`] reads.
    ///
    /// [`DeviceFunction::from_source`]: tilewright_codegen::lower::DeviceFunction::from_source
    fn source(&self) -> &str;

    /// The values of the captures, in the order of the function's parameters.
    fn captures(&self) -> Vec<CaptureValue>;
}

/// A function of a score: soft-capping, a positional bias and the like.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no score function",
    label = "a function marked `#[score_mod]`, with its captures in braces, is needed here",
    note = "the name alone is the Rust function: write `softcap {{ cap: 30.0 }}`, and `softcap {{}}` where there are no captures",
    note = "a function marked `#[mask_mod]` is a mask function: pass it to `mask_mod`"
)]
pub trait ScoreMod: DeviceFn {
    /// The score that takes the place of `score`, the scaled product of query `q` and key `kv` in batch `b` and
    /// head `h`. `q` and `kv` are positions in the sequence.
    fn score(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32;

    /// The derivative of [`score`](Self::score) by its first argument, everything else constant: what a backward pass
    /// multiplies with. It is never asked for where the weight of the key is 0, as after a score of -inf.
    ///
    /// The attribute macro makes it from the function: `tilewright_codegen::lower` says how, and which side it takes where
    /// there is no derivative.
    fn gradient(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32;
}

/// A function that decides who sees whom: causal, sliding window, documents and the like.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no mask function",
    label = "a function marked `#[mask_mod]`, with its captures in braces, is needed here",
    note = "the name alone is the Rust function: write `window {{ size: 128 }}`, and `causal {{}}` where there are no captures",
    note = "a function marked `#[score_mod]` is a score function: pass it to `score_mod`"
)]
pub trait MaskMod: DeviceFn {
    /// Whether query `q` of batch `b` and head `h` sees key `kv`.
    fn keep(&self, b: i32, h: i32, q: i32, kv: i32) -> bool;
}

impl<F: DeviceFn + ?Sized> DeviceFn for Arc<F> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn source(&self) -> &str {
        (**self).source()
    }

    fn captures(&self) -> Vec<CaptureValue> {
        (**self).captures()
    }
}

impl<F: ScoreMod + ?Sized> ScoreMod for Arc<F> {
    fn score(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
        (**self).score(score, b, h, q, kv)
    }

    fn gradient(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
        (**self).gradient(score, b, h, q, kv)
    }
}

impl<F: MaskMod + ?Sized> MaskMod for Arc<F> {
    fn keep(&self, b: i32, h: i32, q: i32, kv: i32) -> bool {
        (**self).keep(b, h, q, kv)
    }
}
