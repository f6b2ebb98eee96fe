//! What the fuzz targets run. `tests/fuzz_corpora.rs` of the library runs the same on the inputs that are kept.

pub mod targets;
