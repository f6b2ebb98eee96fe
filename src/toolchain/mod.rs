//! NVRTC, NVIDIA's run-time compiler: finding it, loading it, and installing it when it is not there.
//!
//! NVRTC needs no GPU and no CUDA toolkit: two packages of pip hold the library and the headers.
//! The search looks, in this order, at `TILEWRIGHT_NVRTC`, the CUDA folder variables, the default CUDA folders, the
//! active Python's packages and Tilewright's data folder. `TILEWRIGHT_NVRTC`, when set, is the only place.
//!
//! A library is code. Whatever named it, it is only loaded when nobody but this user and root can change it, the
//! headers or a folder above them.
//!
//! ```no_run
//! # fn main() -> Result<(), tilewright::toolchain::ToolchainError> {
//! use tilewright::toolchain::Toolchain;
//!
//! let toolchain = Toolchain::find_or_install(|line| eprintln!("{line}"))?;
//! println!("NVRTC {:?} at {}", toolchain.version(), toolchain.library().display());
//! # Ok(())
//! # }
//! ```

mod environment;
mod find;
mod install;
mod layout;
mod load;
mod refusal;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::trust::Exposure;
pub(crate) use environment::{CUDA_VARIABLES, variables};
pub use environment::{DATA_VARIABLE, Environment, NVRTC_VARIABLE};
pub use find::{Outcome, Searched, Source};
pub use install::install;
pub(crate) use load::{Nvrtc, Program};
pub use refusal::{OLDEST_NVRTC, Refusal};

/// A loaded NVRTC with its headers. Cloning is cheap, and clones may compile in parallel.
#[derive(Clone, Debug)]
pub struct Toolchain {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    nvrtc: Nvrtc,
    version: (i32, i32),
    library: PathBuf,
    include: PathBuf,
    searched: Vec<Searched>,
}

impl Toolchain {
    /// Finds and loads NVRTC. Nothing is ever installed or downloaded: that is [`Toolchain::find_or_install`].
    ///
    /// # Errors
    /// [`ToolchainError::NotFound`] or [`ToolchainError::Told`], with every place that was looked at.
    pub fn find() -> Result<Self, ToolchainError> {
        Self::find_in(&Environment::current())
    }

    /// Finds and loads NVRTC in the given environment.
    ///
    /// # Errors
    /// Those of [`Toolchain::find`].
    pub fn find_in(environment: &Environment) -> Result<Self, ToolchainError> {
        let (found, mut searched) = find::search(environment, |located| {
            let (nvrtc, version) = load::load(located)?;
            Ok(((nvrtc, version, located.clone()), version))
        });
        if let Some((nvrtc, version, located)) = found {
            tracing::debug!(library = %located.library.display(), ?version, "NVRTC loaded");
            let layout::Located { library, include, .. } = located;
            return Ok(Self { inner: Arc::new(Inner { nvrtc, version, library, include, searched }) });
        }
        match environment.variable(NVRTC_VARIABLE).and_then(|_| searched.pop()) {
            Some(Searched { place, outcome: Outcome::Refused(refusal), .. }) => {
                Err(ToolchainError::Told { place, refusal })
            }
            _ => Err(ToolchainError::NotFound { searched }),
        }
    }

    /// Finds NVRTC, and when there is none downloads it into Tilewright's data folder (92 MB).
    /// `report` is told, a line at a time, what is going on; it is not called when NVRTC is there.
    ///
    /// # Errors
    /// Those of [`Toolchain::find`] and of [`install`].
    pub fn find_or_install(report: impl Fn(&str)) -> Result<Self, ToolchainError> {
        let environment = Environment::current();
        match Self::find_in(&environment) {
            Err(ToolchainError::NotFound { .. }) => {
                report("no NVRTC on this machine: downloading it (92 MB) into Tilewright's data folder");
                install(&environment, &report)?;
                Self::find_in(&environment)
            }
            found => found,
        }
    }

    /// NVRTC's version, major and minor.
    pub fn version(&self) -> (i32, i32) {
        self.inner.version
    }

    /// The library that is loaded.
    pub fn library(&self) -> &Path {
        &self.inner.library
    }

    /// The folder of the CUDA headers.
    pub fn include_dir(&self) -> &Path {
        &self.inner.include
    }

    /// The places that were looked at, the one in use last.
    pub fn searched(&self) -> &[Searched] {
        &self.inner.searched
    }

    pub(crate) fn nvrtc(&self) -> &Nvrtc {
        &self.inner.nvrtc
    }
}

/// Why there is no toolchain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolchainError {
    /// NVRTC appeared between two looks.
    #[error("NVRTC was installed at {} while the call ran: call again", library.display())]
    JustInstalled {
        /// The library.
        library: PathBuf,
    },
    /// No place has a usable NVRTC.
    #[error(
        "no usable NVRTC ({}.{} or newer, with its builtins library and the CUDA headers) was found. Looked at:{}\n\
         `toolchain::install` brings one; or set {NVRTC_VARIABLE} to the folder that holds libnvrtc.so.",
        OLDEST_NVRTC.0, OLDEST_NVRTC.1, list(searched)
    )]
    NotFound {
        /// The places that were looked at, in order.
        searched: Vec<Searched>,
    },
    /// `TILEWRIGHT_NVRTC` is set and of no use.
    #[error(
        "{NVRTC_VARIABLE} is set to {}, but {refusal}. Correct the variable, or unset it to let Tilewright search.",
        place.display()
    )]
    Told {
        /// The variable's value.
        place: PathBuf,
        /// Why it is of no use.
        refusal: Refusal,
    },
    /// There is nowhere to install to.
    #[error(
        "there is no data folder to install into, because this user has no home. Set {DATA_VARIABLE} to a folder."
    )]
    NoDataFolder,
    /// Nothing that installs Python packages could be run.
    #[error(
        "NVRTC comes as two packages of pip, and none of these could be run: {}. Install Python with pip or uv, or set \
         {NVRTC_VARIABLE} to an NVRTC that is already on the machine.",
        tried.join(", ")
    )]
    NoPython {
        /// The commands that were tried.
        tried: Vec<String>,
    },
    /// The installation failed.
    #[error("`{command}` failed ({status}). Its last lines were:\n{}", last_lines.join("\n"))]
    PipFailed {
        /// The command as one line.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        last_lines: Vec<String>,
    },
    /// Other users could change what is installed.
    #[error("NVRTC is not installed into {}: {refusal}. Set {DATA_VARIABLE} to a folder of your own.", place.display())]
    Shared {
        /// Where it was to be installed.
        place: PathBuf,
        /// Who could change it.
        refusal: Refusal,
    },
    /// The installation succeeded, but what it left is of no use.
    #[error("the packages were installed into {}, but {refusal}. Is there a package for this machine?", place.display())]
    Incomplete {
        /// Where they were installed.
        place: PathBuf,
        /// What is wrong with them.
        refusal: Refusal,
    },
    /// A file or a folder could not be used.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

fn list(searched: &[Searched]) -> String {
    searched.iter().map(|searched| format!("\n  - {searched}")).collect()
}
