//! What the command can fail with.

use super::tensor_file::TensorFileError;
use std::path::PathBuf;
use tilewright::bundle::BundleError;
use tilewright::cache::CacheError;
use tilewright::device::DeviceError;
use tilewright::output::shown;
use tilewright::tensor::TensorError;
use tilewright::toolchain::ToolchainError;

/// A failure: one message that says what was found, what was needed and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Library(#[from] tilewright::Error),
    #[error(transparent)]
    Codegen(#[from] tilewright::codegen::Error),
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    TensorFile(#[from] TensorFileError),
    #[error("cannot write {}: {source}; choose a place you may write to with `{option}`", shown(path))]
    Write {
        path: PathBuf,
        /// The argument that names the place.
        option: &'static str,
        source: std::io::Error,
    },
    #[error(
        "{} does not say how its tokens lie: its metadata has {} as `token_grid`, needed TxHxW such as 8x16x28; save it with that",
        shown(path), found.as_deref().unwrap_or("nothing")
    )]
    NoTokenGrid { path: PathBuf, found: Option<String> },
    #[error("{} has nothing to measure: a tensor of shape {shape:?} has no elements", shown(path))]
    NoElements { path: PathBuf, shape: Vec<usize> },
    #[error("an installation is a download, which `--offline` rules out: leave one of the two away")]
    Offline,
    #[error("cannot write to standard output: {0}")]
    Stdout(std::io::Error),
    #[error(
        "there is nothing to tune on the CPU: run this where the GPU is, or ask for it with `--device cuda:0`"
    )]
    NothingToTune,
    #[error("there is no kernel `{found}`: there are {known}")]
    NoKernel { found: String, known: String },
    #[error("cannot make a folder for the bundle's kernels: {0}; set TMPDIR to a place you may write to")]
    TemporaryFolder(std::io::Error),
    #[error("there is no candidate {found}: {arch} has {count}, numbered from 0")]
    NoCandidate { found: usize, count: usize, arch: String },
}

impl From<TensorError> for CliError {
    fn from(error: TensorError) -> Self {
        CliError::Library(error.into())
    }
}

impl CliError {
    /// What kind of failure it is, in one word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            CliError::Library(_) => "library",
            CliError::Codegen(_) => "codegen",
            CliError::Toolchain(_) => "toolchain",
            CliError::Cache(_) => "cache",
            CliError::Bundle(_) => "bundle",
            CliError::Device(_) => "device",
            CliError::TensorFile(_) | CliError::NoTokenGrid { .. } | CliError::NoElements { .. } => "input",
            CliError::Write { .. } | CliError::Stdout(_) | CliError::TemporaryFolder(_) => "output",
            CliError::Offline
            | CliError::NothingToTune
            | CliError::NoKernel { .. }
            | CliError::NoCandidate { .. } => "arguments",
        }
    }
}
