//! Files to read that the user names: `-` is standard input.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A file to read.
#[derive(Clone, Debug)]
pub struct Source(PathBuf);

impl From<OsString> for Source {
    fn from(name: OsString) -> Self {
        Source(name.into())
    }
}

impl Source {
    /// Whether it is standard input.
    pub fn is_standard(&self) -> bool {
        self.0 == Path::new("-")
    }

    /// The file as it was named.
    pub fn path(&self) -> &Path {
        &self.0
    }
}
