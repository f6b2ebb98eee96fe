//! Tilewright: block-sparse attention kernels, generated, compiled at run time and tuned on the GPU at hand.
//!
//! What an attention takes and gives is here at the root: [`Attention`], [`Tensor`], [`BlockMask`], [`Selection`], [`TokenGrid`],
//! score and mask functions, [`Error`]. The modules are for those who need more:
//!
//! | module | for |
//! |---|---|
//! | [`attention`] | calls in memory of the caller's |
//! | [`device`] | GPUs, streams and buffers |
//! | [`tail`] | what stands for the blocks that a mask drops |
//! | [`services`] | a cache, an NVRTC, a policy and a listener of one's own |
//! | [`cache`], [`tune`] | what is kept: compiled kernels, and which schedule is fastest |
#![cfg_attr(feature = "bundle", doc = "| [`bundle`] | both in one file, for other machines |")]
//! | [`toolchain`], [`compile`] | NVRTC: finding it, installing it, compiling with it |
//! | [`codegen`], [`launch`], [`build`] | kernels of one's own: generated, launched, compiled ahead of time |
//! | [`reference`](mod@reference) | the same mathematics in f64, to compare with |
#![deny(missing_docs)]
// What is `pub` is public: `tests/surface.rs` goes by it.
#![deny(unreachable_pub)]

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
#[allow(unreachable_pub)]
pub mod cli;
pub mod compile;
/// The CPU executor. Reached through the attention on `Device::cpu()`; public for the tests and benchmarks alone.
#[doc(hidden)]
pub mod cpu;
pub mod device;
mod dynamic;
mod error;
mod function;
mod grid;
mod head_dim;
// Generated; formatted by the generator.
/// The bindings of the shipped kernels, whose arguments change with the kernels: public for the tests and benchmarks alone.
#[doc(hidden)]
#[rustfmt::skip]
#[path = "../generated/mod.rs"]
pub mod kernels;
mod interrupt;
pub mod launch;
mod leftover;
mod mask;
mod operands;
/// Files that are there whole or not at all, and text that is safe to print; public for the tests alone.
#[doc(hidden)]
pub mod output;
mod parallel;
pub mod reference;
mod room;
mod select;
pub mod services;
pub mod tail;
mod tensor;
pub mod toolchain;
mod trust;
pub mod tune;
mod user_code;

pub use attention::{Attention, AttentionBuilder, Output};
pub use device::Device;
pub use dynamic::{DynamicMaskMod, DynamicScoreMod, FunctionError};
pub use error::{Error, ErrorKind};
pub use function::{CaptureValue, DeviceFn, MaskMod, ScoreMod};
pub use grid::{GridError, TokenGrid, TokenGridBuilder};
pub use head_dim::{HeadDim, HeadDimError};
pub use interrupt::Interrupt;
pub use mask::{BlockIndex, BlockMask, BlockSize, DenseMap, MaskError, SeqLens};
pub use operands::Gradients;
pub use select::{Scores, SelectError, Selection, top_k, top_p};
pub use tail::{Tail, TailError};
pub use tensor::{Element, Tensor, TensorError};
/// The generator, for kernels of one's own.
pub use tilewright_codegen as codegen;
pub use tilewright_codegen::DType;
pub use tilewright_macros::{mask_mod, score_mod};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

#[cfg(doctest)]
#[doc = include_str!("../docs/plans.md")]
mod plans {}

#[cfg(doctest)]
#[doc = include_str!("../docs/tails.md")]
mod tails {}

#[cfg(doctest)]
#[doc = include_str!("../docs/training.md")]
mod training {}
