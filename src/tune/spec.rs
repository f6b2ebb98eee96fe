//! What a record is about, as a hash.

use crate::codegen::{KernelSource, KernelSpec};

/// Hex digits of a hash that are kept: 128 bits.
pub(super) const HEX: usize = 32;

/// A fingerprint of *what* is computed, `<kernel>-<hash>`: the kernel, its specialisation values, the CUDA text of its
/// device functions, its declaration and its templates. An edit of any of them makes records of before unusable.
///
/// What captures hold is no part of it: it is a launch's, and does not change the code. Nor are the shared headers:
/// they change the fingerprints of the variants, which a record goes by.
pub fn spec_fingerprint(source: &KernelSource, spec: &KernelSpec) -> String {
    let mut hasher = Fields::new("tilewright spec 1");
    hasher.add(spec.kernel());
    hasher.add(spec.values().len());
    for (name, value) in spec.values() {
        hasher.add(name);
        hasher.add(value);
    }
    hasher.add(spec.functions().len());
    for (slot, function) in spec.functions() {
        hasher.add(slot);
        hasher.add(function.as_ref().map_or_else(String::new, |function| function.cuda()));
    }
    // Of the text with all that it includes; what lies beside and is not included is no part of the kernel.
    hasher.add(spec.declaration());
    let mut files: Vec<_> = source.files.iter().filter(|(path, _)| !path.ends_with(".rs")).collect();
    files.sort();
    for (path, text) in files {
        hasher.add(path);
        hasher.add(text);
    }
    format!("{}-{}", spec.kernel(), hasher.hex())
}

/// A hash of fields, each with its length before it: `ab`, `c` and `a`, `bc` differ.
pub(super) struct Fields(blake3::Hasher);

impl Fields {
    pub(super) fn new(schema: &str) -> Self {
        let mut fields = Fields(blake3::Hasher::new());
        fields.add(schema);
        fields
    }

    pub(super) fn add(&mut self, field: impl ToString) {
        let text = field.to_string();
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
    }

    pub(super) fn hex(&self) -> String {
        self.0.finalize().to_hex()[..HEX].to_owned()
    }
}
