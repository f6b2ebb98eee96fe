//! One tuner a GPU at a time: two at once would time each other.

use super::key::slug;
use rustix::fs::OFlags;
use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two attempts: short beside a tuning run, and no load.
const RETRY: Duration = Duration::from_millis(25);

/// The right to tune on a GPU, given back when dropped, and by the system when the process dies.
///
/// It is a courtesy: whoever waits too long, or cannot write to the folder, goes on without. The price is a less
/// precise timing, never a hang and never a wrong kernel. Any user can hold a lock in a folder for all, so a process waits for
/// [`DeviceLock::PATIENCE`] altogether, however many kernels it tunes.
#[derive(Debug)]
pub(crate) struct DeviceLock {
    /// The lock file. It stays: removing it could give two processes a lock each.
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests look at the file"))]
    path: PathBuf,
    file: Option<File>,
}

impl DeviceLock {
    /// How long a process waits for a GPU's lock at most, all its kernels together: enough for a tuner that times a few
    /// kernels before us.
    pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

    /// Where the locks of this machine lie: one place for all users, whatever their cache or `TMPDIR`, since they share
    /// the GPU.
    pub(crate) fn folder() -> &'static Path {
        Path::new("/tmp")
    }

    /// Waits until no other process tunes on `device` (a name that is this GPU's alone: its UUID), for `patience` at most,
    /// less what this process has waited for the same lock before.
    ///
    /// `waiting` is called once, with who holds the lock, when it is not free at once. Whoever had to wait should look at the record
    /// again: the other process may have written it.
    pub(crate) fn acquire(
        folder: &Path,
        device: &str,
        patience: Duration,
        waiting: impl FnOnce(&str),
    ) -> Self {
        let path = folder.join(format!("tilewright-{}.lock", slug(device)));
        let file = match open(folder, &path) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "no tuning lock: tuning without it");
                return DeviceLock { path, file: None };
            }
        };
        let patience = patience.saturating_sub(waited(&path));
        let start = Instant::now();
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => {
                    add_waited(&path, start.elapsed());
                    return DeviceLock { path, file: Some(file) };
                }
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(path = %path.display(), %error, "no tuning lock: tuning without it");
                    return DeviceLock { path, file: None };
                }
                Err(TryLockError::WouldBlock) => {}
            }
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                add_waited(&path, start.elapsed());
                let waited = format!("{:.1?}", waited(&path));
                let holder = holder(&file);
                tracing::warn!(path = %path.display(), holder, waited, "the tuning lock is held by another process: tuning without it");
                return DeviceLock { path, file: None };
            }
            if let Some(waiting) = waiting.take() {
                let holder = holder(&file);
                tracing::info!(path = %path.display(), holder, "another process tunes on this GPU: waiting");
                waiting(&holder);
            }
            std::thread::sleep(RETRY.min(left));
        }
    }

    /// Whether the lock is held; else the work is done without it.
    #[cfg(test)]
    pub(crate) fn is_held(&self) -> bool {
        self.file.is_some()
    }

    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DeviceLock {
    fn drop(&mut self) {
        // Closing would do; a child process that inherited the file would still hold it.
        if let Some(file) = &self.file {
            let _ = file.unlock();
        }
    }
}

/// How long this process has waited for each lock.
static WAITED: Mutex<Option<HashMap<PathBuf, Duration>>> = Mutex::new(None);

fn waited(path: &Path) -> Duration {
    let waited = WAITED.lock().unwrap_or_else(PoisonError::into_inner);
    waited.as_ref().and_then(|waited| waited.get(path).copied()).unwrap_or_default()
}

fn add_waited(path: &Path, time: Duration) {
    let mut waited = WAITED.lock().unwrap_or_else(PoisonError::into_inner);
    *waited.get_or_insert_default().entry(path.to_owned()).or_default() += time;
}

/// Who holds the lock of a file, in words, as far as the system tells.
pub(super) fn holder(file: &File) -> String {
    let process = file.metadata().ok().and_then(|metadata| {
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        holder_in(&locks, metadata.dev(), metadata.ino())
    });
    let Some(process) = process else { return "a process that the system does not show".to_owned() };
    let folder = PathBuf::from(format!("/proc/{process}"));
    let name = std::fs::read_to_string(folder.join("comm"));
    match (name, folder.metadata()) {
        (Ok(name), Ok(metadata)) => {
            format!("process {process} ({:?}) of user {}", name.trim_end(), metadata.uid())
        }
        _ => format!("process {process}"),
    }
}

/// The process that holds a lock on a file, from the text of `/proc/locks`: `1: FLOCK ADVISORY WRITE 123 08:01:456 0 EOF`.
pub(super) fn holder_in(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let place = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Who waits for the lock has an arrow in the second column.
        let held = fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&place.as_str());
        held.then(|| fields[4].parse().ok().filter(|&process| process > 0)).flatten()
    })
}

/// Opens the lock file, which may be another user's: to lock a file it is enough to read it.
fn open(folder: &Path, path: &Path) -> std::io::Result<File> {
    // In a folder that all may write to, a link could lead anywhere, and a pipe would be waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let no_follow = |options: &mut OpenOptions| {
        let file = options.custom_flags(flags.bits() as i32).open(path)?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(Error::new(ErrorKind::InvalidInput, "it is not a plain file")),
        }
    };
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
