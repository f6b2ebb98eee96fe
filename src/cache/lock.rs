//! Locks between processes. They only save doing a thing twice: whoever does not get one goes on without.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::files;
use super::key::file_name;

/// How long a process sleeps between two attempts, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// A lock that is held until it is dropped. One left behind by a killed process is free: the system gave it back.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    // Closing it gives the lock back.
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the lock is given back: whoever gets it then sees that the file has gone, and opens the next one.
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// How waiting for a lock ended.
pub(super) enum Wait {
    /// We have it.
    Held(Lock),
    /// What was waited for is there: the lock is not needed.
    Done,
    /// It takes too long, or locks do not work here (some network file systems).
    Without,
}

/// Waits for the lock `name`, for `timeout` at the longest or until `done` says that it is not needed.
pub(super) fn wait(v1: &Path, name: &str, timeout: Duration, mut done: impl FnMut() -> bool) -> Wait {
    let folder = v1.join("locks");
    if let Err(error) = files::make_folder(v1, &folder) {
        tracing::debug!(%error, "going on without a lock");
        return Wait::Without;
    }
    let path = folder.join(format!("{}.lock", file_name(name)));
    let start = Instant::now();
    let mut pause = PAUSE.0;
    loop {
        match attempt(&path) {
            Attempt::Held(file) => return Wait::Held(Lock { path, file }),
            Attempt::Broken => return Wait::Without,
            Attempt::Taken => {}
        }
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            tracing::warn!(name, ?timeout, "another process holds the lock for too long: going on without");
            return Wait::Without;
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSE.1);
        if done() {
            return Wait::Done;
        }
    }
}

enum Attempt {
    Held(File),
    Taken,
    Broken,
}

fn attempt(path: &Path) -> Attempt {
    // Of root's too: who may read a file may hold its lock.
    const MODE: u32 = 0o600;
    let options = &mut OpenOptions::new();
    let opened = files::open_for(MODE, options.read(true).write(true).create(true).truncate(false), path);
    let file = match opened {
        Ok(file) => file,
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "going on without a lock");
            return Attempt::Broken;
        }
    };
    match file.try_lock() {
        Ok(()) if is_at(&file, path) => Attempt::Held(file),
        // Its last holder has removed it: the next attempt makes a new one.
        Ok(()) | Err(TryLockError::WouldBlock) => Attempt::Taken,
        Err(TryLockError::Error(error)) => {
            tracing::debug!(path = %path.display(), %error, "locks do not work here: going on without");
            Attempt::Broken
        }
    }
}

/// Whether the open file is still the one that the path names.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// An open file cannot be removed here.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}
