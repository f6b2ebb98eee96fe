//! Tilewright: block-sparse attention kernels, generated, compiled at run time and tuned on the GPU at hand.
#![deny(missing_docs)]

extern crate self as tilewright;

pub mod attention;
pub mod build;
#[cfg(feature = "bundle")]
pub mod bundle;
pub mod cache;
mod check;
/// The command line; public for the command and for `fuzz/` alone.
#[cfg(feature = "command")]
#[doc(hidden)]
pub mod cli;
pub mod compile;
/// The CPU executor. Reached through the attention on `Device::cpu()`; public for the tests and benchmarks alone.
#[doc(hidden)]
pub mod cpu;
pub mod device;
mod dynamic;
mod error;
pub mod function;
pub mod grid;
// Generated; formatted by the generator.
#[rustfmt::skip]
#[path = "../generated/mod.rs"]
pub mod kernels;
mod interrupt;
pub mod launch;
mod leftover;
pub mod mask;
mod operands;
pub mod output;
mod parallel;
pub mod reference;
mod room;
pub mod select;
pub mod services;
pub mod tensor;
pub mod toolchain;
mod trust;
pub mod tune;
mod user_code;

pub use attention::{Attention, AttentionBuilder, Gradients, HeadDim, HeadDimError, Output};
pub use device::Device;
pub use dynamic::{DynamicMaskMod, DynamicScoreMod, FunctionError};
pub use error::Error;
pub use function::{CaptureValue, DeviceFn, MaskMod, ScoreMod};
pub use grid::{GridError, TokenGrid, TokenGridBuilder};
pub use interrupt::Interrupt;
pub use mask::{BlockIndex, BlockMask, BlockSize, DenseMap, MaskError};
pub use select::{Selection, top_k, top_p};
pub use tensor::Tensor;
/// The generator, for kernels of one's own.
pub use tilewright_codegen as codegen;
pub use tilewright_codegen::DType;
pub use tilewright_macros::{mask_mod, score_mod};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
