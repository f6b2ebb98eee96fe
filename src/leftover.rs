//! The names of what is not complete yet: a killed process leaves it behind, and the next one has to know it for its own.

use std::ffi::OsStr;

/// How many characters tempfile draws for a name.
pub(crate) const DRAWN: usize = 6;

/// Whether a name is one that tempfile makes of this prefix and suffix with [`DRAWN`] characters: a user's own, which may
/// begin and end alike, is not.
pub(crate) fn is_drawn(name: &OsStr, prefix: &str, suffix: &str) -> bool {
    let drawn = name
        .as_encoded_bytes()
        .strip_prefix(prefix.as_bytes())
        .and_then(|rest| rest.strip_suffix(suffix.as_bytes()));
    drawn.is_some_and(|drawn| drawn.len() == DRAWN && drawn.iter().all(u8::is_ascii_alphanumeric))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tempfile_draws_is_known_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for (prefix, suffix) in [(".tilewright-", ".partial"), ("toolchain.partial-", "")] {
            let mut builder = tempfile::Builder::new();
            builder.prefix(prefix).suffix(suffix).rand_bytes(DRAWN);
            for _ in 0..50 {
                let file = builder.tempfile_in(folder.path()).unwrap();
                assert!(
                    is_drawn(file.path().file_name().unwrap(), prefix, suffix),
                    "{}",
                    file.path().display()
                );
            }
            for drawn in ["", "notes", "my-own", "a1B2c3d", "a1B2c\u{e9}"] {
                assert!(!is_drawn(format!("{prefix}{drawn}{suffix}").as_ref(), prefix, suffix), "{drawn}");
            }
        }
    }
}
