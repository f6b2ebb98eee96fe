//! Named pipes.

use super::shown;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a pipe has to get a reader, and how often it is tried.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Opens a pipe once somebody reads from it: what is written to it would wait for ever otherwise.
pub(super) fn open(path: &Path) -> io::Result<File> {
    open_within(path, PATIENCE)
}

fn open_within(path: &Path, patience: Duration) -> io::Result<File> {
    let start = Instant::now();
    let mut told = false;
    loop {
        let flags = OFlags::NONBLOCK.bits() as i32;
        match OpenOptions::new().write(true).custom_flags(flags).open(path) {
            Ok(file) => {
                // From here on a reader may take its time.
                fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
                return Ok(file);
            }
            Err(error) if error.raw_os_error() != Some(Errno::NXIO.raw_os_error()) => return Err(error),
            Err(_) if start.elapsed() > patience => {
                let why = format!(
                    "it is a pipe that nobody reads from, after {patience:?}: start its reader first"
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err(_) => {}
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(path = %shown(path), "waiting for somebody to read from the pipe");
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::io::{Read, Write};

    #[test]
    fn a_pipe_is_waited_for_but_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let error = open_within(&path, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("start its reader first"), "{error}");

        let from = path.clone();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            let mut pipe = File::open(from).unwrap();
            // More than a pipe holds: the writer waits for a reader that takes its time.
            std::thread::sleep(Duration::from_millis(100));
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let bytes = vec![7; 1 << 20];
        open_within(&path, PATIENCE).unwrap().write_all(&bytes).unwrap();
        assert_eq!(reader.join().unwrap(), bytes);
    }
}
