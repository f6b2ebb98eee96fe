//! The generator behind tilewright.
