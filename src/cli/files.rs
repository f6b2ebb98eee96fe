//! Files to write that the user names: `-` is standard output.

use super::error::CliError;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use tilewright::output::Output;

/// A place to write to.
#[derive(Clone, Debug)]
pub struct Destination(PathBuf);

/// Whether the process was started with a standard output that is closed.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether what is written to standard output would be lost.
pub fn standard_output_is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Looks whether standard output is closed, by its name: the list is there wherever `/proc` is.
#[cfg(target_os = "linux")]
pub fn look_at_standard_output() {
    let descriptors = Path::new("/proc/self/fd");
    let closed = descriptors.is_dir() && descriptors.join("1").symlink_metadata().is_err();
    CLOSED.store(closed, Ordering::Relaxed);
}

impl From<OsString> for Destination {
    fn from(name: OsString) -> Self {
        Destination(name.into())
    }
}

impl Destination {
    /// Whether the content goes to standard output: all else goes to standard error then.
    pub fn is_standard(&self) -> bool {
        self.0 == Path::new("-") || Output::is_standard(&self.0)
    }

    /// Whether what goes there and what goes to another place would meet.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0 || (self.is_standard() && other.is_standard())
    }

    /// Makes sure that the place can be written to. `option` is the argument that names it.
    pub fn open(&self, option: &'static str) -> Result<Output, CliError> {
        let open = || match self.is_standard() {
            true if io::stdout().is_terminal() => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "standard output is a terminal; redirect it, or name a file",
            )),
            true if standard_output_is_closed() => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "standard output is closed; redirect it, or name a file",
            )),
            true => Ok(Output::standard()),
            false => Output::open(&self.0),
        };
        open().map_err(write_error(&self.0, option))
    }

    /// The place as it was named.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Writes to a place that was opened.
pub fn write(output: Output, option: &'static str, bytes: &[u8]) -> Result<(), CliError> {
    let path = output.path().to_owned();
    output.write(bytes).map_err(write_error(&path, option))
}

/// An error of the place that `option` names.
pub fn write_error(path: &Path, option: &'static str) -> impl FnOnce(io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::Write { path, option, source }
}
