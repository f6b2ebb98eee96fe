//! Tilewright: block-sparse attention kernels, generated, compiled at run time and tuned on the GPU at hand.
#![deny(missing_docs)]

extern crate self as tilewright;

mod error;
pub mod function;
pub mod select;
pub mod tensor;

pub use error::Error;
pub use function::{DeviceFn, MaskMod, ScoreMod};
pub use select::{Selection, top_k, top_p};
pub use tensor::Tensor;
pub use tilewright_codegen::DType;
