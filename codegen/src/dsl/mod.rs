//! The kernel declaration language: what a `kernel! { … }` block says, parsed and checked.
//!
//! ```
//! use tilewright_codegen::dsl::Kernel;
//! let kernel = Kernel::parse("scale/kernel.rs", r#"
//!     kernel! {
//!         /// Multiplies every element.
//!         fn scale(x: Tensor<T, [rows, columns]>, y: out Tensor<T, [rows, columns]>, factor: f32)
//!         specialize { T: [f16, bf16], BLOCK: [128, 256] }
//!         let blocks = ceil_div(columns, BLOCK);
//!         body sm80 {
//!             tune { WARPS: [4, 8] }
//!             where { BLOCK % (32 * WARPS) == 0 || WARPS == 8 }
//!             launch { grid = [blocks, rows, 1], threads = 32 * WARPS }
//!         }
//!     }
//! "#)?;
//! assert_eq!(kernel.name, "scale");
//! # Ok::<(), tilewright_codegen::Error>(())
//! ```
//!
//! # Names and sizes
//!
//! Arguments, dimensions and functions are written in small letters, parameters in capitals: the former become members of structs in
//! Rust and CUDA, the latter constants of the CUDA source and variables in small letters of the bindings. So no name is a word of
//! C++ or one that the generated code has itself.
//!
//! A text has at most 256 KiB, a name 64 letters; an expression nests 100 deep; a list or a range has 256 values, each of 32 bits, as
//! the constant of the CUDA source has. A `specialize` or a `tune` has 64 parameters, and all combinations of their values are
//! enumerated: there are at most 65536 of each. A kernel has 256 arguments, 256 requirements and 256 constraints of a body; its
//! arguments and dimensions take at most the 4096 bytes that CUDA passes to a kernel.
//!
//! What divides by zero or overflows 64 bits has no value: a launch refuses its arguments for it.
//!
//! # Parameters that go together
//!
//! `specialize { D: [64, 128], D_V: [64, 128] = D }` gives `D_V` the value of `D` where a spec gives none, and variants' names leave
//! it out then. `require D_V <= D, "values are no wider than keys";` is over parameters alone, so that a spec is asked and no launch:
//! other combinations do not exist.
//!
//! # What is said once
//!
//! `const BINS = 1024;` is a number of the declaration, of the CUDA source and of the bindings. `include "lib/rows.rs";` reads
//! sections that several declarations share from `shared! { … }` in another file: [`Kernel::of`](crate::dsl::Kernel::of) finds it among the files of a
//! [`KernelSource`](crate::KernelSource) or in the tile library.
//!
//! # Device functions
//!
//! `functions { score_mod: ScoreMod, mask_mod: MaskMod }` gives the body a struct `Functions f` whose members are called as
//! `f.score_mod(score, batch, head, q, kv)` and `f.mask_mod(batch, head, q, kv)`; the constants `HAS_SCORE_MOD` and
//! `HAS_MASK_MOD` tell whether a launch has them. A function that a launch does not have changes nothing.
//!
//! A kernel that needs the derivative of the score function by the score writes `score_mod: ScoreMod + Gradient`, and its
//! body calls `f.score_mod.gradient(score, batch, head, q, kv)`: [`lower`](crate::lower#derivatives) says how it is made.
//! The struct holds the same captures, so one launch argument serves kernels with and without it.

mod access;
mod ast;
mod check;
mod cuda;
mod expr;
mod include;
pub(crate) mod names;
mod one_macro;
mod params;
mod parse;
mod parse_body;
mod parse_file;
mod parse_values;
mod rust;
mod spans;

pub use access::{Access, Tolerance};
pub use ast::{
    Arg, ArgKind, Body, Constant, Constraint, Derived, DimRef, ElementType, FunctionSlot, Kernel, Launch,
    Require, ScalarType, SpecParam, SpecValues, TensorMap, TuneOn, TuneParam, Worth,
};
pub use expr::{EvalError, Expr, ceil_div};
pub use params::{Field, FieldKind, ParamsLayout};
