//! What the command can fail with.

use super::tensor_file::TensorFileError;
use std::path::PathBuf;
use tilewright::bundle::BundleError;
use tilewright::cache::CacheError;
use tilewright::device::DeviceError;
use tilewright::launch::BindError;
use tilewright::output::{printable, shown};
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
        shown(path), printable(found.as_deref().unwrap_or("nothing"))
    )]
    NoTokenGrid { path: PathBuf, found: Option<String> },
    #[error("{}: {source}", shown(path))]
    Layer { path: PathBuf, source: Box<CliError> },
    #[error("{} has nothing to measure: a tensor of shape {shape:?} has no elements", shown(path))]
    NoElements { path: PathBuf, shape: Vec<usize> },
    #[error("an installation is a download, which `--offline` rules out: leave one of the two away")]
    Offline,
    #[error("two outputs would go to {}: name another place for one of them", shown(path))]
    OnePlace { path: PathBuf },
    #[error("cannot write to standard output: {0}")]
    Stdout(std::io::Error),
    #[error(
        "there is nothing to tune on the CPU: run this where the GPU is, or ask for it with `--device cuda:0`"
    )]
    NothingToTune,
    #[error("there is no kernel `{found}`: there are {known}")]
    NoKernel { found: String, known: String },
    #[error(
        "cannot read the kernels of {}: {source}; `--templates` names a folder with a folder for each kernel",
        shown(path)
    )]
    NoTemplates { path: PathBuf, source: std::io::Error },
    #[error("cannot read {}, a file of the kernels that `--templates` names: {source}", shown(path))]
    KernelFile { path: PathBuf, source: std::io::Error },
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
            CliError::Codegen(_) | CliError::Library(tilewright::Error::Codegen(_)) => "codegen",
            CliError::Toolchain(_) | CliError::Library(tilewright::Error::Toolchain(_)) => "toolchain",
            CliError::Cache(_) | CliError::Library(tilewright::Error::Cache(_)) => "cache",
            CliError::Device(_) | CliError::Library(tilewright::Error::Device(_)) => "device",
            CliError::Library(tilewright::Error::Bind(BindError::Names { .. }))
            | CliError::Library(tilewright::Error::Tail(_)) => "arguments",
            CliError::Library(_) => "library",
            CliError::TensorFile(_)
            | CliError::NoTokenGrid { .. }
            | CliError::NoElements { .. }
            | CliError::NoTemplates { .. }
            | CliError::KernelFile { .. } => "input",
            CliError::Write { .. }
            | CliError::Bundle(BundleError::Write { .. })
            | CliError::Stdout(_)
            | CliError::TemporaryFolder(_) => "output",
            CliError::Bundle(_) => "bundle",
            CliError::Layer { source, .. } => source.kind(),
            CliError::Offline
            | CliError::OnePlace { .. }
            | CliError::NothingToTune
            | CliError::NoKernel { .. }
            | CliError::NoCandidate { .. } => "arguments",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tilewright::Error;

    #[test]
    fn a_failure_is_of_one_kind_whoever_passes_it_on() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let path = || PathBuf::from("file");
        let of_layer = |source: CliError| CliError::Layer { path: path(), source: Box::new(source) };
        for (error, kind) in [
            (DeviceError::NoDriver.into(), "device"),
            (Error::Device(DeviceError::NoDriver).into(), "device"),
            (of_layer(Error::Device(DeviceError::NoDriver).into()), "device"),
            (ToolchainError::NoDataFolder.into(), "toolchain"),
            (Error::Toolchain(ToolchainError::NoDataFolder).into(), "toolchain"),
            (Error::Interrupted.into(), "library"),
            (BundleError::Write { path: path(), source: full() }.into(), "output"),
            (CliError::Write { path: path(), option: "--output", source: full() }, "output"),
            (BundleError::Empty { cache: path() }.into(), "bundle"),
        ] {
            assert_eq!(CliError::kind(&error), kind, "{error}");
        }
    }
}
