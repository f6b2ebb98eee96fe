//! The attributes that make device functions of ordinary Rust functions: [`macro@score_mod`] and
//! [`macro@mask_mod`].
//!
//! Both are used through the `tilewright` crate, which exports them and the traits they implement. What a device
//! function may contain is described in `tilewright_codegen::lower`.

mod expand;

use proc_macro::TokenStream;
use tilewright_codegen::lower::FunctionKind;

/// Makes a score function: `fn(score: f32, b: i32, h: i32, q: i32, kv: i32, captures…) -> f32`.
///
/// The function stays as it is. Beside it comes a struct of the same name whose fields are the captures (a
/// `&[i32]` becomes a `Vec<i32>`), which implements `tilewright::ScoreMod`:
///
/// ```ignore
/// #[score_mod]
/// fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
///     cap * (score / cap).tanh()
/// }
///
/// let attention = Attention::builder(HeadDim::D128, DType::Bf16).score_mod(softcap { cap: 30.0 });
/// ```
#[proc_macro_attribute]
pub fn score_mod(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand::device_function(FunctionKind::ScoreMod, arguments.into(), item.into()).into()
}

/// Makes a mask function: `fn(b: i32, h: i32, q: i32, kv: i32, captures…) -> bool`.
///
/// As [`macro@score_mod`], with `tilewright::MaskMod`:
///
/// ```ignore
/// #[mask_mod]
/// fn document(b: i32, h: i32, q: i32, kv: i32, doc: &[i32]) -> bool {
///     doc[q as usize] == doc[kv as usize]
/// }
///
/// let attention = Attention::builder(HeadDim::D128, DType::Bf16).mask_mod(document { doc: ids });
/// ```
#[proc_macro_attribute]
pub fn mask_mod(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand::device_function(FunctionKind::MaskMod, arguments.into(), item.into()).into()
}
