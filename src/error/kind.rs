//! What a caller can do about an error.

use super::Error;
use crate::device::DeviceError;
use crate::grid::GridError;
use crate::mask::MaskError;
use crate::tensor::TensorError;

/// What a caller can do about an [`Error`]: there are few kinds, and they stay, whatever becomes of the errors behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The call asks for what cannot be: change its arguments.
    InvalidInput,
    /// A score or mask function that cannot be used, or that panicked: change the function, or what it captures.
    Function,
    /// The memory of the GPU, or of the host, does not suffice: call with less, or free some.
    OutOfMemory,
    /// No GPU can be used here: run on the CPU.
    NoDevice,
    /// The GPU or its driver failed.
    Device,
    /// NVRTC is missing or cannot be used: install it, or bring compiled kernels along.
    Toolchain,
    /// A kernel cannot be made: its declaration or source is refused, or no candidate is of use.
    Kernel,
    /// The policy is cache-only, and the cache does not hold what the call needs: fill it.
    NotCached,
    /// The kernel cache cannot be used, or is not safe to use.
    Cache,
    /// Another call is at work in the same memory: call when it has returned.
    Busy,
    /// The caller interrupted it: call again.
    Interrupted,
}

impl Error {
    /// What a caller can do about it.
    ///
    /// ```
    /// use tilewright::{BlockMask, BlockSize, ErrorKind, SeqLens};
    /// let dense = |tokens| BlockMask::full(1, 40, BlockSize::default(), SeqLens::same(tokens));
    /// match dense(2_000_000_000) {
    ///     Err(error) if error.kind() == ErrorKind::OutOfMemory => println!("{error}"),
    ///     other => panic!("{other:?}"),
    /// }
    /// ```
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Tensor(TensorError::TooLarge { .. })
            | Error::Mask(MaskError::TooLarge { .. })
            | Error::Grid(GridError::TooLarge { .. }) => ErrorKind::OutOfMemory,
            Error::Tensor(_)
            | Error::Select(_)
            | Error::Mask(_)
            | Error::Grid(_)
            | Error::HeadDim(_)
            | Error::Bind(_)
            | Error::Policy(_)
            | Error::Tail(_)
            | Error::Scale { .. }
            | Error::Aliased { .. }
            | Error::SharedRows
            | Error::NotOnGpu { .. }
            | Error::Selects
            | Error::Scratch { .. }
            | Error::Gaps { .. }
            | Error::Lists { .. }
            | Error::ForeignWorkspace
            | Error::Plan { .. }
            | Error::Workspace { .. } => ErrorKind::InvalidInput,
            Error::Capture(_)
            | Error::DynamicFunction(_)
            | Error::Function { .. }
            | Error::DeviceFunction { .. } => ErrorKind::Function,
            Error::Device(error) => of_device(error),
            Error::Toolchain(_) => ErrorKind::Toolchain,
            Error::Codegen(_) | Error::Compile(_) | Error::Spills { .. } | Error::Tune { .. } => {
                ErrorKind::Kernel
            }
            Error::CacheOnly { .. } => ErrorKind::NotCached,
            Error::Cache(_) => ErrorKind::Cache,
            Error::ScratchInUse => ErrorKind::Busy,
            Error::Interrupted => ErrorKind::Interrupted,
        }
    }
}

fn of_device(error: &DeviceError) -> ErrorKind {
    match error {
        DeviceError::NoDriver
        | DeviceError::DriverTooOld { .. }
        | DeviceError::NoGpu
        | DeviceError::NoSuchGpu { .. }
        | DeviceError::Forked { .. }
        | DeviceError::UnsupportedGpu { .. } => ErrorKind::NoDevice,
        DeviceError::WrongArch { .. } | DeviceError::BrokenCubin { .. } | DeviceError::TooMuch { .. } => {
            ErrorKind::Kernel
        }
        DeviceError::Parameters { .. } | DeviceError::CopySize { .. } | DeviceError::OtherGpu { .. } => {
            ErrorKind::InvalidInput
        }
        DeviceError::Cuda { .. } if error.is_out_of_memory() => ErrorKind::OutOfMemory,
        DeviceError::Cuda { .. } => ErrorKind::Device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::toolchain::ToolchainError;
    use std::error::Error as _;

    fn cuda(code: u32) -> Error {
        let [name, meaning] = ["CUDA_ERROR_…", "what it means"].map(str::to_owned);
        DeviceError::Cuda { call: "cuMemAllocAsync", code, name, meaning, hint: "" }.into()
    }

    #[test]
    fn a_kind_says_what_to_do() {
        let function = || "softcap".to_owned();
        for (error, kind) in [
            (Error::Selects, ErrorKind::InvalidInput),
            (
                TensorError::TooLarge { shape: vec![1 << 60], dtype: DType::F32 }.into(),
                ErrorKind::OutOfMemory,
            ),
            (MaskError::TooLarge { shape: [1 << 60; 4] }.into(), ErrorKind::OutOfMemory),
            (MaskError::BlockSize { q: 32, kv: 32 }.into(), ErrorKind::InvalidInput),
            (DeviceError::NoGpu.into(), ErrorKind::NoDevice),
            // CUDA_ERROR_OUT_OF_MEMORY and CUDA_ERROR_ILLEGAL_ADDRESS.
            (cuda(2), ErrorKind::OutOfMemory),
            (cuda(700), ErrorKind::Device),
            (DeviceError::OtherGpu { found: 1, needed: 0 }.into(), ErrorKind::InvalidInput),
            (ToolchainError::NoDataFolder.into(), ErrorKind::Toolchain),
            (Error::DeviceFunction { name: function(), message: function() }, ErrorKind::Function),
            (Error::Spills { kernel: function(), arch: "sm_80".into() }, ErrorKind::Kernel),
            (Error::ScratchInUse, ErrorKind::Busy),
            (Error::Interrupted, ErrorKind::Interrupted),
        ] {
            assert_eq!(error.kind(), kind, "{error}");
        }
    }

    /// What the system said stays within reach, through however many errors.
    #[test]
    fn sources_are_passed_on() {
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let path = "headers".into();
        let error = Error::from(ToolchainError::Io { action: "read", path, source: denied });
        let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
        assert_eq!(source.map(std::io::Error::kind), Some(std::io::ErrorKind::PermissionDenied));
    }
}
