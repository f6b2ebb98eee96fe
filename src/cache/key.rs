//! What names a cubin in the cache.

/// The version of what is stored: the hash's fields, meta.json, records. It is part of every hash, so that a change
/// of it makes everything older a miss.
pub(super) const SCHEMA: u32 = 1;

/// Folders in `v1` that are no architectures.
pub(crate) const RESERVED: [&str; 3] = ["tune", "quarantine", "locks"];

/// The longest name that a file gets from a user's text: with a hash and an ending it stays below the 255 bytes that
/// file systems allow.
const LONGEST: usize = 150;

/// Everything that decides a cubin: the source, the options, NVRTC's version and the architecture, with the name it
/// is listed by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CubinKey {
    name: String,
    arch: String,
    source_blake3: String,
    options: Vec<String>,
    nvrtc: (i32, i32),
    hash: String,
}

impl CubinKey {
    /// The key of the kernel `name`, compiled from `source` for `arch` with NVRTC's `options` (in any order).
    pub fn new(name: &str, arch: &str, source: &str, options: &[&str], nvrtc: (i32, i32)) -> Self {
        let options = options.iter().map(|option| option.to_string()).collect();
        Self::from_parts(name, arch, digest(source.as_bytes()), options, nvrtc)
    }

    /// The key of a source whose digest is known.
    pub(super) fn from_parts(
        name: &str,
        arch: &str,
        source_blake3: String,
        mut options: Vec<String>,
        nvrtc: (i32, i32),
    ) -> Self {
        options.sort();
        let mut hasher = blake3::Hasher::new();
        // Every field with its length before it: no two keys run together to the same bytes.
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(&SCHEMA.to_le_bytes());
        field(source_blake3.as_bytes());
        field(&(options.len() as u64).to_le_bytes());
        options.iter().for_each(|option| field(option.as_bytes()));
        field(&nvrtc.0.to_le_bytes());
        field(&nvrtc.1.to_le_bytes());
        field(arch.as_bytes());
        let mut hash = hasher.finalize().to_hex().to_string();
        hash.truncate(32);
        Self { name: name.to_string(), arch: arch.to_string(), source_blake3, options, nvrtc, hash }
    }

    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The architecture.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// The blake3 digest of the source, in hexadecimal.
    pub fn source_blake3(&self) -> &str {
        &self.source_blake3
    }

    /// NVRTC's options, sorted.
    pub fn options(&self) -> &[String] {
        &self.options
    }

    /// NVRTC's version.
    pub fn nvrtc(&self) -> (i32, i32) {
        self.nvrtc
    }

    /// 32 hexadecimal digits of the blake3 digest of all that decides the cubin.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The name of the entry's folder, within the architecture's.
    pub(super) fn folder(&self) -> String {
        format!("{}-{}", file_name(&self.name), self.hash)
    }
}

/// A blake3 digest in hexadecimal.
pub(super) fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// A text as the name of a file: itself when it is a plain one, else its plain characters with a digest of the whole,
/// so that two texts never share a name. Nothing that comes out of here leaves the folder it is joined to.
pub(super) fn file_name(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
    let hidden = text.is_empty() || text.starts_with('.');
    if !hidden && text.len() <= LONGEST && text.chars().all(plain) && !RESERVED.contains(&text) {
        return text.to_string();
    }
    let kept: String = text.chars().take(LONGEST - 20).map(|c| if plain(c) { c } else { '_' }).collect();
    format!("{}~{}", kept.trim_start_matches('.'), &digest(text.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts_and_the_order_of_options_does_not() {
        let key = |arch, source, options: &[&str], nvrtc| CubinKey::new("k", arch, source, options, nvrtc);
        let base = key("sm_80", "source", &["-a", "-b"], (13, 0));
        assert_eq!(base, key("sm_80", "source", &["-b", "-a"], (13, 0)));
        assert_eq!(base.hash().len(), 32);
        for other in [
            key("sm_90a", "source", &["-a", "-b"], (13, 0)),
            key("sm_80", "source ", &["-a", "-b"], (13, 0)),
            key("sm_80", "source", &["-a"], (13, 0)),
            key("sm_80", "source", &["-a-b"], (13, 0)),
            key("sm_80", "source", &["-a", "-b"], (13, 1)),
            key("sm_80", "source", &["-a", "-b"], (0, 13)),
        ] {
            assert_ne!(base.hash(), other.hash(), "{other:?}");
        }
    }

    #[test]
    fn file_names_are_plain_and_distinct() {
        assert_eq!(file_name("forward_sm80"), "forward_sm80");
        let long = "x".repeat(1000);
        let odd = ["", ".", "..", "a/b", "a_b", "a b", "../../etc", "tune", "/", "é", "a\0b", &long, "…"];
        let mut names: Vec<String> = odd.iter().map(|text| file_name(text)).collect();
        for name in &names {
            assert!(!name.is_empty() && !name.starts_with('.') && !name.contains('/') && name.len() < 200);
            assert!(name.is_ascii() && !RESERVED.contains(&name.as_str()));
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), odd.len());
    }
}
