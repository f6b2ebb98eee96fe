//! The generator behind tilewright: from kernel declarations and device functions to specialised CUDA sources, Rust
//! bindings and the tuning space. It needs no CUDA and no GPU.
//!
//! The flow, one way only: [`KernelSource`] (a folder) → its declaration → [`KernelSpec`] (*what* is
//! computed) → [`Candidate`]s (*how*: a [`Schedule`] with its [`Budget`]; pruned ones are [`Rejection`]s) → [`Variant`]
//! (the rendered source with its fingerprint). [`Generator`] walks it; [`emit()`] does so in a user's `build.rs`.
//!
//! ```no_run
//! // build.rs
//! fn main() -> Result<(), tilewright_codegen::Error> {
//!     tilewright_codegen::emit("kernels/")
//! }
//! ```

mod arch;
mod bindings;
mod budget;
mod constants;
/// The syntax tree of a declaration, which grows with the language; public for the command and the tests alone.
#[doc(hidden)]
pub mod dsl;
mod dtype;
mod emit;
mod error;
mod generator;
mod library;
/// Public for the attribute macros alone.
#[doc(hidden)]
pub mod limits;
pub mod lower;
mod model;
mod render;
mod schedule;
mod source;
mod spec;
mod value;
mod variant;

pub use arch::{Arch, Family, Limits};
pub use budget::{Budget, Candidate, Candidates, Reason, Rejection};
pub use dtype::DType;
pub use emit::emit;
/// Bindings as text and files; public for the command and for Tilewright's own `generated/`.
#[doc(hidden)]
pub use emit::{Difference, bindings, generated, sync, sync_with};
pub use error::Error;
pub use generator::Generator;
pub use model::Machine;
pub use schedule::Schedule;
pub use source::KernelSource;
pub use spec::KernelSpec;
pub use value::Value;
pub use variant::Variant;
