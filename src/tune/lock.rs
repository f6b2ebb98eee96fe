//! One tuner a GPU at a time: two at once would time each other.

use super::key::slug;
use fs4::{FileExt, TryLockError};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two attempts: short beside a tuning run, and no load.
const RETRY: Duration = Duration::from_millis(25);

/// The right to tune on a GPU, given back when dropped, and by the system when the process dies.
///
/// It is a courtesy: whoever waits too long, or cannot write to the folder, goes on without. The price is a less
/// precise timing, never a hang and never a wrong kernel.
#[derive(Debug)]
pub struct DeviceLock {
    path: PathBuf,
    file: Option<File>,
}

impl DeviceLock {
    /// Patience enough for a tuner that times a few kernels before us.
    pub const PATIENCE: Duration = Duration::from_secs(30);

    /// Where the locks of this machine lie: one place for all users, whatever their cache or `TMPDIR`, since they share
    /// the GPU.
    pub fn folder() -> &'static Path {
        Path::new("/tmp")
    }

    /// Waits until no other process tunes on `device` (a name that is this GPU's alone: its UUID), for `patience` at most.
    ///
    /// `waiting` is called once, when the lock is not free at once. Whoever had to wait should look at the record
    /// again: the other process may have written it.
    pub fn acquire(folder: &Path, device: &str, patience: Duration, waiting: impl FnOnce()) -> Self {
        let path = folder.join(format!("tilewright-{}.lock", slug(device)));
        let file = match open(folder, &path) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no tuning lock: tuning without it");
                return DeviceLock { path, file: None };
            }
        };
        let start = Instant::now();
        let mut waiting = Some(waiting);
        loop {
            // Named in full: the standard library's method of the same name would win.
            match FileExt::try_lock(&file) {
                Ok(()) => return DeviceLock { path, file: Some(file) },
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(path = %path.display(), %error, "no tuning lock: tuning without it");
                    return DeviceLock { path, file: None };
                }
                Err(TryLockError::WouldBlock) => {}
            }
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                let waited = format!("{:.1?}", start.elapsed());
                tracing::warn!(path = %path.display(), waited, "another process holds the tuning lock: tuning without it");
                return DeviceLock { path, file: None };
            }
            if let Some(waiting) = waiting.take() {
                tracing::info!(path = %path.display(), "another process tunes on this GPU: waiting");
                waiting();
            }
            std::thread::sleep(RETRY.min(left));
        }
    }

    /// Whether the lock is held; else the work is done without it.
    pub fn is_held(&self) -> bool {
        self.file.is_some()
    }

    /// The lock file. It stays: removing it could give two processes a lock each.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DeviceLock {
    fn drop(&mut self) {
        // Closing would do; a child process that inherited the file would still hold it.
        if let Some(file) = &self.file {
            let _ = FileExt::unlock(file);
        }
    }
}

/// Opens the lock file, which may be another user's: to lock a file it is enough to read it.
fn open(folder: &Path, path: &Path) -> std::io::Result<File> {
    // In a folder that all may write to, a link could lead anywhere.
    let no_follow =
        |options: &mut OpenOptions| options.custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path);
    match no_follow(OpenOptions::new().read(true)) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        opened => return opened,
    }
    std::fs::create_dir_all(folder)?;
    match no_follow(OpenOptions::new().read(true).write(true).create_new(true)) {
        Ok(file) => {
            // Readable for the other users of the GPU, whatever this one's umask.
            file.set_permissions(Permissions::from_mode(0o644))?;
            Ok(file)
        }
        // Another process was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => no_follow(OpenOptions::new().read(true)),
        Err(error) => Err(error),
    }
}
