//! Everything that can go wrong with a GPU, in words.

use std::ffi::CStr;

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

/// Why a device cannot be used, or what became of work given to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The driver's library is not there.
    #[error(
        "no NVIDIA driver: libcuda.so could not be loaded. Install NVIDIA's driver (in a container: start it with \
         GPU access), or use the CPU."
    )]
    NoDriver,
    /// The driver is older than what is needed.
    #[error(
        "the NVIDIA driver is too old: it knows CUDA {}.{}, and {what} needs CUDA {}.{} (driver {}). {hint}",
        found.0, found.1, needed.0, needed.1, release(*needed)
    )]
    DriverTooOld {
        /// The newest CUDA version the driver knows.
        found: (i32, i32),
        /// The version that is needed.
        needed: (i32, i32),
        /// What needs it.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// The driver is there, but no GPU.
    #[error(
        "the NVIDIA driver is there, but it shows no GPU. Check `nvidia-smi` and the variable CUDA_VISIBLE_DEVICES, or use the CPU."
    )]
    NoGpu,
    /// There is no GPU of that number.
    #[error("there is no GPU {ordinal}: this machine has {count}, numbered from 0")]
    NoSuchGpu {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The process was forked from one that had started the driver.
    #[error(
        "process {by} had started CUDA before this process was forked from it, and CUDA does not survive a fork. Start the process anew \
         (`spawn` instead of `fork` in Python's multiprocessing), or use the GPU in the forked processes alone."
    )]
    Forked {
        /// The process that started the driver.
        by: u32,
    },
    /// The GPU is one that no kernel is written for.
    #[error(
        "{name} has compute capability {}.{}, which no kernel is written for: 8.0 (Ampere) to 12.1 are supported. Use the CPU.",
        found.0, found.1
    )]
    UnsupportedGpu {
        /// The GPU's name.
        name: String,
        /// Its compute capability.
        found: (i32, i32),
    },
    /// A cubin was made for another architecture.
    #[error(
        "the kernel `{kernel}` was compiled for {found}, and {name} needs {needed}. Compile it for {needed}."
    )]
    WrongArch {
        /// The kernel.
        kernel: String,
        /// The cubin's architecture.
        found: String,
        /// The device's architecture.
        needed: String,
        /// The device's name.
        name: String,
    },
    /// A cubin is not what the compiler made.
    #[error("the {bytes} bytes of the kernel `{kernel}` are no complete cubin. Compile it anew.")]
    BrokenCubin {
        /// The kernel.
        kernel: String,
        /// How many bytes there are.
        bytes: usize,
    },
    /// A launch asks for more than the device has.
    #[error("the kernel `{kernel}` was launched with {found} {what}, and at most {limit} are possible")]
    TooMuch {
        /// The kernel.
        kernel: String,
        /// Of what.
        what: &'static str,
        /// How much was asked for.
        found: u64,
        /// How much there is.
        limit: u64,
    },
    /// A launch passes other parameters than the kernel takes.
    #[error(
        "the kernel `{kernel}` takes parameters of {needed:?} bytes, and was launched with {found:?}: pass `FunctionArgs` where its \
         declaration has `functions`, and let its body take what the declaration has"
    )]
    Parameters {
        /// The kernel.
        kernel: String,
        /// The sizes that were passed.
        found: Vec<usize>,
        /// The sizes the kernel declares.
        needed: Vec<usize>,
    },
    /// A buffer and what is copied from or to it differ in size.
    #[error("a copy of {host} bytes does not fit a GPU buffer of {device} bytes: both must be of one size")]
    CopySize {
        /// The bytes on the host's side.
        host: usize,
        /// The bytes on the device's side.
        device: usize,
    },
    /// A buffer of another GPU than the work is for.
    #[error("the buffer is on GPU {found}, needed on GPU {needed}: use the device that made it")]
    OtherGpu {
        /// The buffer's.
        found: usize,
        /// The device's.
        needed: usize,
    },
    /// A call of the driver failed.
    #[error("{call} failed: {meaning} ({name}, code {code}).{hint}")]
    Cuda {
        /// The driver's function, or what was being done.
        call: &'static str,
        /// The result, a `CUresult`: 2 for too little memory.
        code: u32,
        /// The result's name, such as `CUDA_ERROR_OUT_OF_MEMORY`.
        name: String,
        /// The result in words.
        meaning: String,
        /// What to do, when that is known, after a space.
        hint: &'static str,
    },
}

impl DeviceError {
    /// Whether the driver refused to start a kernel: another variant may do, and the GPU is as it was.
    pub(crate) fn is_refused_launch(&self) -> bool {
        match self {
            Self::TooMuch { .. } => true,
            Self::Cuda { call: "cuLaunchKernel", code, .. } => {
                REFUSED_LAUNCHES.iter().any(|&refused| refused as u32 == *code)
            }
            _ => false,
        }
    }

    /// Whether the GPU's memory did not suffice.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Cuda { code, .. } if *code == CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32)
    }

    /// An error of the driver's while it was doing `call`.
    pub(super) fn cuda(call: &'static str, error: DriverError) -> Self {
        Self::Cuda {
            call,
            code: error.0 as u32,
            name: text(error.error_name()).unwrap_or_else(|| format!("{:?}", error.0)),
            meaning: text(error.error_string()).unwrap_or_else(|| "unknown error".to_string()),
            hint: hint(error.0),
        }
    }
}

/// What the driver answers to a launch that it does not start.
const REFUSED_LAUNCHES: [CUresult; 3] = [
    CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
    CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
    CUresult::CUDA_ERROR_INVALID_IMAGE,
];

/// Turns a result of the driver's into one of ours.
pub(super) fn cuda<T>(call: &'static str, result: Result<T, DriverError>) -> Result<T, DeviceError> {
    result.map_err(|error| DeviceError::cuda(call, error))
}

fn text(text: Result<&CStr, DriverError>) -> Option<String> {
    text.ok().map(|text| text.to_string_lossy().into_owned())
}

/// The driver's release that brought a CUDA version, for people who know their driver by that number.
fn release(version: (i32, i32)) -> &'static str {
    match version {
        (13, _) => "580 or newer",
        (12, 8..) => "570 or newer",
        _ => "of that version or newer",
    }
}

fn hint(code: CUresult) -> &'static str {
    match code {
        CUresult::CUDA_ERROR_NOT_INITIALIZED => {
            " In a process that was forked from one that uses the GPU, CUDA does not work: start the process anew (`spawn` instead of \
             `fork` in Python's multiprocessing), or use the GPU in the forked processes alone."
        }
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            " The GPU's memory is full: use shorter sequences or fewer heads at a time, or end other programs that use it."
        }
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            " The libcuda.so that was loaded is the toolkit's stub, which holds no driver: take its `stubs` folder out of \
             LD_LIBRARY_PATH."
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            " The driver's library and its kernel module differ in version: restart the machine, or the container."
        }
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            " Another process holds the GPU exclusively: check `nvidia-smi`."
        }
        CUresult::CUDA_ERROR_SYSTEM_NOT_READY => {
            " A service of the machine, such as nvidia-fabricmanager, is not running."
        }
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_INVALID_IMAGE => {
            " The cubin is for another architecture, or from a newer CUDA than the driver's."
        }
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_LAUNCH_FAILED => {
            " A kernel went wrong, and nothing more runs on this GPU in this process. `compute-sanitizer` names the place."
        }
        CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => {
            " The launch asks for more registers or shared memory than a multiprocessor has."
        }
        _ => "",
    }
}
