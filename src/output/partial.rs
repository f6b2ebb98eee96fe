//! A file that has not got its name yet.

use super::shown;
use crate::leftover::{DRAWN, is_drawn};
use std::fs::{self, File, Metadata, Permissions, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use tempfile::NamedTempFile;

const PREFIX: &str = ".tilewright-";
const SUFFIX: &str = ".partial";

/// How often a name is tried: another process may take a new file for one that was left behind.
const ATTEMPTS: usize = 8;

/// A new file beside the one that it is going to be. It is locked as long as its process lives.
pub(super) struct Partial(NamedTempFile);

impl Partial {
    /// Makes sure that files can be made in a folder, and removes what killed processes left there.
    pub(super) fn probe(folder: &Path) -> io::Result<()> {
        // Where the system can, a file that never has a name.
        tempfile::tempfile_in(folder)?;
        sweep(folder);
        Ok(())
    }

    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(SUFFIX).rand_bytes(DRAWN);
        // As any other new file; tempfile's own are for their owner alone.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        for _ in 0..ATTEMPTS {
            let file = builder.tempfile_in(folder)?;
            match file.as_file().try_lock() {
                Err(TryLockError::WouldBlock) => {}
                // Where locks do not work nothing is swept.
                Ok(()) | Err(TryLockError::Error(_)) if fs::symlink_metadata(file.path()).is_ok() => {
                    return Ok(Partial(file));
                }
                _ => {}
            }
        }
        Err(io::Error::other("other processes keep removing the new file"))
    }

    /// Takes over the permissions and the owner of the file that is going to be replaced.
    #[cfg(unix)]
    pub(super) fn take_after(&mut self, found: &Metadata) -> io::Result<()> {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
        let own = self.0.as_file().metadata()?;
        let (user, group) = (found.uid(), found.gid());
        if (own.uid(), own.gid()) != (user, group) {
            fchown(self.0.as_file(), Some(user), Some(group))?;
        }
        // New content is not what bits such as setuid were given to.
        self.0.as_file().set_permissions(Permissions::from_mode(found.permissions().mode() & 0o777))
    }

    #[cfg(not(unix))]
    pub fn take_after(&mut self, found: &Metadata) -> io::Result<()> {
        self.0.as_file().set_permissions(found.permissions())
    }

    /// Writes everything and gives the file its name.
    pub(super) fn publish(mut self, bytes: &[u8], target: &Path) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.as_file().sync_all()?;
        self.0.persist(target).map(drop).map_err(|error| error.error)
    }
}

/// Removes what killed processes of this user left in a folder: nobody holds its lock.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if !is_drawn(&entry.file_name(), PREFIX, SUFFIX) {
            continue;
        }
        let path = entry.path();
        if let Ok(file) = own_file(&path)
            && file.try_lock().is_ok()
            && fs::remove_file(&path).is_ok()
        {
            tracing::debug!(path = %shown(&path), "removed what a process left behind");
        }
    }
}

/// Opens a plain file of this user.
#[cfg(unix)]
fn own_file(path: &Path) -> io::Result<File> {
    use rustix::fs::OFlags;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    match found.is_file() && found.uid() == rustix::process::geteuid().as_raw() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(not(unix))]
fn own_file(path: &Path) -> io::Result<File> {
    File::open(path)
}
