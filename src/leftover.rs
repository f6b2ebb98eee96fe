//! What is not complete yet: a killed process leaves it behind, and the next one has to know it for its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use tempfile::TempDir;

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

/// A new folder for this user alone, which is removed when it is dropped, and what is locked as long as its process lives: [`sweep`]
/// passes it over. Where locks do not work there is no lock, and nothing is swept.
pub(crate) fn folder(parent: &Path, prefix: &str) -> io::Result<(TempDir, Option<File>)> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).rand_bytes(DRAWN);
    // Whatever the mask of the process.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    loop {
        let folder = builder.tempdir_in(parent)?;
        let file = match File::open(folder.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // Not every system opens folders.
            Err(_) => return Ok((folder, None)),
        };
        // It may have been swept before it was locked.
        match file.try_lock() {
            Ok(()) if folder.path().exists() => return Ok((folder, Some(file))),
            Ok(()) | Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(_)) => return Ok((folder, None)),
        }
    }
}

/// Removes the folders of these prefixes that processes which are gone have left: nobody holds their locks.
pub(crate) fn sweep(parent: &Path, prefixes: &[&str]) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        if prefixes.iter().any(|prefix| is_drawn(&name, prefix, ""))
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(folder) = File::open(&path)
            && folder.try_lock().is_ok()
            && fs::remove_dir_all(&path).is_ok()
        {
            tracing::debug!(path = %path.display(), "removed what a process left behind");
        }
    }
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

    /// Folders that are made while others sweep stay, until their process lets go of them.
    #[test]
    fn only_what_nobody_holds_is_swept() {
        const PREFIX: &str = ".tmp-import-";
        let parent = tempfile::tempdir().unwrap();
        let dead = parent.path().join(".tmp-import-a1B2c3");
        fs::create_dir_all(dead.join("below")).unwrap();
        fs::write(parent.path().join(".tmp-import-aFile1"), "").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..200).for_each(|_| sweep(parent.path(), &[PREFIX])));
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let (folder, lock) = super::folder(parent.path(), PREFIX).unwrap();
                        assert!(lock.is_some() && fs::write(folder.path().join("file"), "").is_ok());
                    }
                });
            }
        });
        assert!(!dead.exists());
        let left: Vec<_> =
            fs::read_dir(parent.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, [".tmp-import-aFile1"], "no folder of any name");
    }
}
