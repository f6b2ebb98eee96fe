//! The paths that files of a bundle may have.

use super::error::{PathFault, Refusal, excerpt};
use crate::cache::transfer::{LARGEST_PART, LARGEST_RECORD, PARTS, RESERVED};

/// The longest part of a path: file systems allow 255 bytes.
const LONGEST_PART: usize = 240;

/// The longest path, three parts.
pub(super) const LONGEST: usize = 3 * LONGEST_PART + 2;

/// The file of a bundle that lists the others.
pub(super) const MANIFEST: &str = "manifest.json";

/// Hexadecimal digits of the hash in an entry's folder.
const HASH: usize = 32;

/// What a file is, by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// A part of a compiled kernel.
    Entry {
        /// `<arch>/<name>-<hash>`.
        folder: &'a str,
        /// Its place in [`PARTS`].
        part: usize,
    },
    /// A tuning record.
    Record,
}

impl<'a> Place<'a> {
    /// Reads a path: three plain names, of a form that the exporter writes.
    pub(super) fn of(path: &'a str) -> Result<Self, Refusal> {
        let fail = |fault| Err(Refusal::Path { path: excerpt(path.as_bytes()), fault });
        if path.starts_with(['/', '\\']) || path.as_bytes().get(1) == Some(&b':') {
            return fail(PathFault::Absolute);
        }
        if path.split(['/', '\\']).any(|part| part == "..") {
            return fail(PathFault::Outside);
        }
        let parts: Vec<&str> = path.split('/').collect();
        let &[first, second, file] = &parts[..] else { return fail(PathFault::Form) };
        if !parts.iter().all(|part| is_plain(part)) {
            return fail(PathFault::Form);
        }
        if first == "tune" && file.len() > ".json".len() && file.ends_with(".json") {
            return Ok(Place::Record);
        }
        let hash = second.rsplit_once('-').filter(|(name, _)| !name.is_empty()).map_or("", |(_, hash)| hash);
        let hashed = hash.len() == HASH && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match PARTS.iter().position(|part| *part == file) {
            Some(part) if hashed && !RESERVED.contains(&first) => {
                Ok(Place::Entry { folder: &path[..first.len() + 1 + second.len()], part })
            }
            _ => fail(PathFault::Form),
        }
    }

    /// The most bytes that such a file has.
    pub(super) fn largest(&self) -> u64 {
        match *self {
            Place::Entry { part, .. } => LARGEST_PART[part],
            Place::Record => LARGEST_RECORD,
        }
    }
}

/// Letters, digits and a few signs, as the cache names its files; nothing hidden.
fn is_plain(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'+' | b'~');
    !part.is_empty() && part.len() <= LONGEST_PART && !part.starts_with('.') && part.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exporters_paths_are_read() {
        let hash = "0123456789abcdef0123456789abcdef";
        let folder = format!("sm_90a/forward-{hash}");
        for (part, file) in PARTS.iter().enumerate() {
            let path = format!("{folder}/{file}");
            assert_eq!(Place::of(&path).unwrap(), Place::Entry { folder: &folder, part });
        }
        assert_eq!(Place::of("tune/sm_90a-h200/forward-1.json").unwrap(), Place::Record);

        let fault = |path: &str| match Place::of(path) {
            Err(Refusal::Path { fault, .. }) => fault,
            other => panic!("{path:?}: {other:?}"),
        };
        let entry = |path: &str| path.replace('#', hash);
        for path in ["/etc/passwd", "\\\\host\\share", "C:/windows", "//x", "/"] {
            assert_eq!(fault(path), PathFault::Absolute, "{path}");
        }
        for path in ["../x", "a/../b", "a/b/..", "..", "a\\..\\b", "sm_90a/../kernel.cu"] {
            assert_eq!(fault(path), PathFault::Outside, "{path}");
        }
        for path in [
            "",
            "kernel.cu",
            "manifest.json",
            "sm_90a/kernel.cu",
            "sm_90a/k-#/kernel.cu/x",
            "sm_90a/k-#/kernel.ptx",
            "sm_90a/k-#/",
            "sm_90a//kernel.cu",
            "./k-#/kernel.cu",
            "sm_90a/k-#0/kernel.cu",
            "sm_90a/-#/kernel.cu",
            "sm_90a/k-0123/kernel.cu",
            "sm_90a/.k-#/kernel.cu",
            "sm_90a/k\n-#/kernel.cu",
            "sm_90a/ké-#/kernel.cu",
            "tune/k-#/kernel.cu",
            "locks/k-#/kernel.cu",
            "quarantine/k-#/kernel.cu",
            "tune/device/.json",
            "tune/device/record.txt",
            "tune/record.json",
        ] {
            assert_eq!(fault(&entry(path)), PathFault::Form, "{path}");
        }
        let upper = format!("sm_90a/k-{}/kernel.cu", hash.to_uppercase());
        assert_eq!(fault(&upper), PathFault::Form);
        assert_eq!(fault(&format!("{}/k-{hash}/kernel.cu", "x".repeat(LONGEST_PART + 1))), PathFault::Form);
    }
}
