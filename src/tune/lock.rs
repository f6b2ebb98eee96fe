//! One tuner a GPU at a time: two at once would time each other.

use super::key::slug;
use fs4::{FileExt, TryLockError};
use std::fs::File;
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

    /// Waits until no other process tunes on `device` (a name that is this GPU's alone), for `patience` at most.
    ///
    /// `waiting` is called once, when the lock is not free at once. Whoever had to wait should look at the record
    /// again: the other process may have written it.
    pub fn acquire(folder: &Path, device: &str, patience: Duration, waiting: impl FnOnce()) -> Self {
        let path = folder.join(format!("gpu-{}.lock", slug(device)));
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

fn open(folder: &Path, path: &Path) -> std::io::Result<File> {
    std::fs::create_dir_all(folder)?;
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}
