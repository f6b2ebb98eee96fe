//! Named pipes.

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
            Err(_) if start.elapsed() > PATIENCE => {
                let why = format!("it is a pipe that nobody reads from, after {PATIENCE:?}: start its reader first");
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err(_) => {}
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(path = %path.display(), "waiting for somebody to read from the pipe");
        }
        std::thread::sleep(PAUSE);
    }
}
