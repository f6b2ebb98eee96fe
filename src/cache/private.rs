//! Folders that nobody else may write to: a cubin is code.

use std::fs;
use std::io;
use std::path::Path;

use super::CacheError;
use super::files::io_error;

/// Creates a folder for this user alone, or checks that an existing one is this user's and nobody else's to write.
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
    owned(path, &metadata)
}

#[cfg(unix)]
fn owned(path: &Path, metadata: &fs::Metadata) -> Result<(), CacheError> {
    use std::os::unix::fs::MetadataExt;
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != user {
        return Err(CacheError::Owner { path: path.to_path_buf(), owner, user });
    }
    match metadata.mode() & 0o022 {
        0 => Ok(()),
        _ => Err(CacheError::Writable { path: path.to_path_buf(), mode: metadata.mode() & 0o7777 }),
    }
}

/// Elsewhere a user's folders are private by inheritance.
#[cfg(not(unix))]
fn owned(_path: &Path, _metadata: &fs::Metadata) -> Result<(), CacheError> {
    Ok(())
}

fn create(path: &Path, recursive: bool) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(recursive);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}
