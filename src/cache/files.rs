//! Reading, writing and putting away single files and folders of the cache.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::io_error;
use super::{CacheError, private};
use crate::trust::{self, Part};

/// What files and folders that are not complete, or on their way out, begin with.
pub(super) const TEMPORARY: &str = ".tmp-";

/// What the folders of imports begin with, which are locked while they are in use.
pub(super) const STAGING: &str = ".tmp-import-";

/// How many things the quarantine keeps.
const QUARANTINED: usize = 32;

/// Why something cannot be used.
#[derive(Debug)]
pub(super) enum Fault {
    /// It is not there.
    Absent,
    /// The system did not let us read it; it may be all right.
    Io(io::Error),
    /// Another version of Tilewright wrote it.
    Schema(u32),
    /// It is not what it should be.
    Broken(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent => f.write_str("it is not there"),
            Self::Io(error) => error.fmt(f),
            Self::Schema(schema) => write!(f, "it has schema {schema}"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

/// Opens a file of the cache: no link, no device, and no waiting for a pipe's other end.
pub(super) fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    open_for(private::modes().1, options, path)
}

/// The same with the mode of a new file.
pub(super) fn open_for(mode: u32, options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.mode(mode).custom_flags(flags.bits() as i32);
    }
    options.open(path)
}

/// Reads a plain file of at most `limit` bytes that nobody else can change. No more memory is taken than the file has bytes.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Fault> {
    let name = || path.file_name().unwrap_or_default().display();
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            return Err(Fault::Broken(format!("{} is not a plain file", name())));
        }
        Ok(_) => {}
        Err(error) => return Err(absent(error)),
    }
    let file = open(OpenOptions::new().read(true), path).map_err(absent)?;
    // Of the very file that is open: the folders above may be others' to write, and lead to theirs since they were looked at.
    let metadata = file.metadata().map_err(Fault::Io)?;
    trust::exposure(path, &metadata, Part::Itself).map_err(|exposure| {
        Fault::Io(io::Error::new(io::ErrorKind::PermissionDenied, format!("it {exposure}")))
    })?;
    let len = metadata.len();
    if len > limit {
        return Err(Fault::Broken(format!("{} has {len} bytes, and {limit} were expected", name())));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len as usize + 1).map_err(|_| Fault::Io(io::ErrorKind::OutOfMemory.into()))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Fault::Io)?;
    match bytes.len() as u64 {
        found if found > limit => Err(Fault::Broken(format!("{} grew while it was read", name()))),
        _ => Ok(bytes),
    }
}

fn absent(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Fault::Absent,
        _ => Fault::Io(error),
    }
}

/// Creates a file that only this user may write to, and writes it through to the disk.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = open(OpenOptions::new().write(true).create_new(true), path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Replaces a file with one rename. Readers see the old one or the new one.
pub(super) fn replace(v1: &Path, path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    let parent = path.parent().unwrap_or(v1);
    let mut builder = tempfile::Builder::new();
    let prefix = temporary_prefix();
    builder.prefix(&prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(private::modes().1));
    let mut file = builder.tempfile_in(parent).map_err(io_error("create a file in", parent))?;
    let written = file.write_all(bytes).and_then(|()| file.as_file().sync_all());
    written.map_err(io_error("write", path))?;
    let file = match file.persist(path) {
        Ok(_) => return Ok(()),
        Err(error) => error.file,
    };
    // A folder has taken the name.
    quarantine(v1, path, "a record was expected")?;
    file.persist(path).map(drop).map_err(|error| io_error("write", path)(error.error))
}

/// Writes a folder's list of names to the disk, where the file system has a notion of that.
pub(super) fn sync_folder(path: &Path) {
    if let Ok(folder) = File::open(path) {
        let _ = folder.sync_all();
    }
}

/// Makes sure of a folder below `v1`. Anything else of its name goes to the quarantine.
pub(super) fn make_folder(v1: &Path, path: &Path) -> Result<(), CacheError> {
    private::folder(v1, false)?;
    match private::folder(path, false) {
        Err(CacheError::NotAFolder { .. }) if path != v1 => {
            quarantine(v1, path, "a folder was expected")?;
            private::folder(path, false)
        }
        result => result,
    }
}

/// Moves something that cannot be used to the quarantine, from where nothing is ever read. On a disk too full for that
/// it is removed.
pub(super) fn quarantine(v1: &Path, path: &Path, why: &str) -> Result<(), CacheError> {
    let name = path.file_name().unwrap_or_default();
    let moved = quarantine_place(v1).and_then(|place| {
        fs::rename(path, place.path().join(name)).map_err(io_error("quarantine", path))?;
        Ok(place.keep())
    });
    match moved {
        Ok(place) => {
            tracing::warn!(path = %path.display(), to = %place.display(), why, "quarantined a cache entry");
            forget_oldest(&v1.join("quarantine"));
            Ok(())
        }
        // Somebody else was faster.
        Err(_) if fs::symlink_metadata(path).is_err() => Ok(()),
        Err(error) if retire(path).is_err() => Err(error),
        Err(_) => {
            tracing::warn!(path = %path.display(), why, "removed a cache entry");
            Ok(())
        }
    }
}

fn quarantine_place(v1: &Path) -> Result<tempfile::TempDir, CacheError> {
    let folder = v1.join("quarantine");
    if let Err(CacheError::NotAFolder { .. }) = private::folder(&folder, false) {
        remove(&folder);
    }
    private::folder(&folder, false)?;
    new_folder(&folder, "")
}

/// A folder that only this user may write to, removed when it is dropped.
pub(super) fn new_folder(parent: &Path, prefix: &str) -> Result<tempfile::TempDir, CacheError> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(private::modes().0));
    builder.prefix(prefix).tempdir_in(parent).map_err(io_error("create a folder in", parent))
}

/// Keeps the quarantine from growing for ever.
fn forget_oldest(quarantine: &Path) {
    let mut places: Vec<_> = children(quarantine)
        .into_iter()
        .map(|path| (fs::symlink_metadata(&path).and_then(|metadata| metadata.modified()).ok(), path))
        .collect();
    places.sort();
    let surplus = places.len().saturating_sub(QUARANTINED);
    for (_, path) in places.into_iter().take(surplus) {
        let _ = retire(&path);
    }
}

/// Removes a file or a folder; it is gone at once as a whole.
pub(super) fn retire(path: &Path) -> Result<(), CacheError> {
    let parent = path.parent().unwrap_or(path);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // A process of our number may have left such a name behind: the rename then fails, and the next number is free.
    let rename = || {
        let name = format!("{}{}", temporary_prefix(), COUNT.fetch_add(1, Ordering::Relaxed));
        let target = parent.join(name);
        fs::rename(path, &target).map(|()| target)
    };
    match (1..16).fold(rename(), |renamed, _| renamed.or_else(|_| rename())) {
        Ok(target) => {
            remove(&target);
            Ok(())
        }
        // Somebody else was faster.
        Err(_) if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) => {
            Ok(())
        }
        Err(error) => Err(io_error("remove", path)(error)),
    }
}

/// Removes what is there, as far as that is possible; links are removed, not followed.
pub(super) fn remove(path: &Path) {
    let _ = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
}

/// What lies in a folder; nothing when it is no folder or cannot be read.
pub(super) fn children(folder: &Path) -> Vec<PathBuf> {
    if !fs::symlink_metadata(folder).is_ok_and(|metadata| metadata.is_dir()) {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Whether a path is one of those that are not complete or on their way out.
pub(super) fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()))
}

/// The start of a temporary name: it tells whose it is.
pub(super) fn temporary_prefix() -> String {
    format!("{TEMPORARY}{}-", std::process::id())
}
