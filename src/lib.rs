//! Tilewright.

pub mod compile;
pub mod device;
pub mod toolchain;
