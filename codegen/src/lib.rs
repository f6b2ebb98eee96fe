//! The generator behind tilewright.
pub mod lower;
