//! The generator behind tilewright.
pub mod dtype;
pub use dtype::DType;
