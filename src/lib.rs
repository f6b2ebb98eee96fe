//! Tilewright: block-sparse attention kernels, generated, compiled at run time and tuned on the GPU at hand.
#![deny(missing_docs)]

extern crate self as tilewright;

#[doc(hidden)]
pub mod cpu;
mod error;
pub mod function;
pub mod mask;
pub mod reference;
pub mod select;
pub mod tensor;

pub use error::Error;
pub use function::{DeviceFn, MaskMod, ScoreMod};
pub use mask::{BlockIndex, BlockMask, BlockSize, DenseMap, MaskError};
pub use select::{Selection, top_k, top_p};
pub use tensor::Tensor;
pub use tilewright_codegen::DType;
