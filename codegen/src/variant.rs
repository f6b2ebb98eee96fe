//! A rendered source with its name and fingerprint.

use crate::budget::Candidate;

/// One rendered source: self-contained CUDA C++ that NVRTC and nvcc take.
#[derive(Debug, Clone)]
pub struct Variant {
    /// A readable name, also the kernel's symbol.
    pub name: String,
    /// The first 16 hex digits of the source's blake3 hash.
    pub fingerprint: String,
    /// The source.
    pub source: String,
    /// What it was rendered from.
    pub candidate: Candidate,
}

impl Variant {
    pub(crate) fn new(name: String, source: String, candidate: Candidate) -> Self {
        let fingerprint = blake3::hash(source.as_bytes()).to_hex()[..16].to_owned();
        Variant { name, fingerprint, source, candidate }
    }
}
