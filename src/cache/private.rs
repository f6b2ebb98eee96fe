//! Folders that only this user and root may write to: a cubin is code.

use std::fs;
use std::io;
use std::path::Path;

use super::CacheError;
use super::error::io_error;
use crate::trust::{self, Exposure, Part};

/// Creates a folder that only this user may write to, or checks that an existing one is theirs or root's, and for nobody else to
/// write. One of root's is a cache that other users read.
///
/// `link` allows the folder to be reached by a symbolic link: the user's own choice for the root, nobody's below it.
pub(super) fn folder(path: &Path, link: bool) -> Result<(), CacheError> {
    match create(path, link) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        // What stands in the way tells more than that creating failed.
        Err(error) if fs::symlink_metadata(path).is_err() => return Err(io_error("create", path)(error)),
        Err(_) => {}
    }
    let metadata = if link { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let metadata = metadata.map_err(io_error("look at", path))?;
    if !metadata.is_dir() {
        return Err(CacheError::NotAFolder { path: path.to_path_buf() });
    }
    trust::exposure(path, &metadata, Part::Private)
        .map_err(|exposure| exposed(path, exposure, is_ours(&metadata)))?;
    // The dot needs the right to search the folder as well as the one to list it.
    match fs::read_dir(path.join(".")) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(CacheError::Unreadable { path: path.to_path_buf() })
        }
        _ => Ok(()),
    }
}

/// Whether a folder is still one that only this user and root may write to. The folders above it may be others' to write, as in
/// a container they often are: what somebody has put in its place since it was opened is theirs.
pub(super) fn is_still(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.is_dir() && trust::exposure(path, &metadata, Part::Private).is_ok())
}

fn exposed(path: &Path, exposure: Exposure, ours: bool) -> CacheError {
    let path = path.to_path_buf();
    match exposure {
        Exposure::Owner { owner, user } => CacheError::Owner { path, owner, user },
        Exposure::Writable { mode } => CacheError::Writable { path, mode, ours },
    }
}

/// Whether the folder is this user's to change. One for all, such as `/tmp`, is nobody's.
#[cfg(unix)]
fn is_ours(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o1000 == 0
}

#[cfg(not(unix))]
fn is_ours(_metadata: &fs::Metadata) -> bool {
    true
}

/// The modes of new folders and files: for this user alone. What root makes, other users may read, as anything that root
/// installs; the mask of the process (`umask`) takes that away again where it is not wanted.
#[cfg(unix)]
pub(super) fn modes() -> (u32, u32) {
    match rustix::process::geteuid().is_root() {
        true => (0o755, 0o644),
        false => (0o700, 0o600),
    }
}

pub(super) fn create(path: &Path, recursive: bool) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(recursive);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, modes().0);
    builder.create(path)
}
