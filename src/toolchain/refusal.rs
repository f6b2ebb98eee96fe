//! Why a place has no NVRTC that can be used.

use std::path::PathBuf;

use serde::Serialize;

use crate::output::lossy;
use crate::trust::Exposure;

/// The oldest NVRTC that knows every architecture family the kernels are written for (sm_120a came with it).
pub const OLDEST_NVRTC: (i32, i32) = (12, 8);

/// Why a place was not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Refusal {
    /// Nothing is there.
    #[error("it does not exist")]
    Missing,
    /// The folder holds no NVRTC.
    #[error("it holds no libnvrtc.so")]
    NoLibrary,
    /// NVRTC is there without the library that holds its device functions.
    #[error("{} has no libnvrtc-builtins beside it", library.display())]
    NoBuiltins {
        /// The library that was found.
        #[serde(serialize_with = "lossy")]
        library: PathBuf,
    },
    /// NVRTC is too old.
    #[error(
        "it is NVRTC {major}.{minor}, and {}.{} or newer is needed",
        OLDEST_NVRTC.0,
        OLDEST_NVRTC.1
    )]
    TooOld {
        /// Major version found.
        major: i32,
        /// Minor version found.
        minor: i32,
    },
    /// NVRTC is there without the CUDA headers.
    #[error("{} is there, but no include folder beside it has cuda_fp16.h and cuda_bf16.h", library.display())]
    NoHeaders {
        /// The library that was found.
        #[serde(serialize_with = "lossy")]
        library: PathBuf,
    },
    /// Other users can change the library, its headers, or a folder above them.
    #[error("{} {exposure}: a library is code, so only you and root may be able to change it", path.display())]
    Exposed {
        /// What others can change.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
        /// How.
        #[serde(flatten)]
        exposure: Exposure,
    },
    /// A file could not be looked at.
    #[error("{} could not be looked at: {message}", path.display())]
    Unreadable {
        /// The file.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
        /// What the system said.
        message: String,
    },
    /// No Python answered.
    #[error("neither `python3` nor `python` could be asked for its package folders")]
    NoPython,
    /// Python has no NVRTC package.
    #[error(
        "no nvidia-cuda-nvrtc package (nvidia/cu13 or nvidia/cuda_nvrtc) in Python's {folders} package folders"
    )]
    NoPackage {
        /// How many folders were looked at.
        folders: usize,
    },
    /// The dynamic linker refused the library.
    #[error("{} could not be loaded: {message}", library.display())]
    CannotLoad {
        /// The library.
        #[serde(serialize_with = "lossy")]
        library: PathBuf,
        /// What the dynamic linker said.
        message: String,
    },
    /// The library lacks a function.
    #[error("{} has no function `{symbol}`: it is not a complete NVRTC", library.display())]
    MissingSymbol {
        /// The library.
        #[serde(serialize_with = "lossy")]
        library: PathBuf,
        /// The function.
        symbol: &'static str,
    },
}
