//! Devices: the CPU, and CUDA GPUs through the driver alone (no CUDA toolkit, no CUDA runtime).
//!
//! ```
//! use tilewright::device::Device;
//!
//! let device = Device::best();
//! println!("{device}, architecture {:?}", device.arch());
//! ```

mod buffer;
mod capture;
mod cuda;
mod current;
mod driver;
mod error;
mod event;
mod inquire;
mod kernel;
mod queue;
mod tensor_map;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::services::Services;
use serde::Serialize;
use tilewright_codegen::{Arch, Limits, Machine};

pub use buffer::DeviceBuffer;
pub(crate) use buffer::Rows;
pub use cuda::CudaDevice;
pub use driver::{OLDEST_DRIVER, driver_version, expect_own_process};
pub use error::DeviceError;
pub(crate) use event::Event;
pub use kernel::LoadedKernel;
#[doc(hidden)]
pub use tensor_map::BoxedTensor;
pub(crate) use tensor_map::TensorMap;

/// Where kernels run. Cloning is cheap: clones are the same device.
#[derive(Clone, Debug)]
pub enum Device {
    /// The processor, with the built-in executor.
    Cpu,
    /// A CUDA GPU.
    Cuda(CudaDevice),
}

impl Device {
    /// The processor. It is always there.
    pub fn cpu() -> Self {
        Self::Cpu
    }

    /// The GPU with this number, from 0.
    ///
    /// # Errors
    /// No driver, a driver that is too old, no GPU of that number, or a GPU older than Ampere.
    pub fn cuda(ordinal: usize) -> Result<Self, DeviceError> {
        CudaDevice::new(ordinal).map(Self::Cuda)
    }

    /// The first GPU if it can be used, else the processor.
    pub fn best() -> Self {
        Self::cuda(0).unwrap_or_else(|reason| {
            tracing::debug!(%reason, "no GPU: running on the CPU");
            Self::Cpu
        })
    }

    /// The same device with these services; the processor needs none.
    pub fn with_services(self, services: &Services) -> Self {
        match self {
            Self::Cpu => Self::Cpu,
            Self::Cuda(device) => Self::Cuda(device.with_services(services)),
        }
    }

    /// The architecture that kernels are compiled for, such as `sm_90a`; none for the processor.
    pub fn arch(&self) -> Option<String> {
        self.as_cuda().map(|device| device.arch().to_string())
    }

    /// The GPU, when it is one.
    pub fn as_cuda(&self) -> Option<&CudaDevice> {
        match self {
            Self::Cpu => None,
            Self::Cuda(device) => Some(device),
        }
    }

    /// Whether it is a GPU.
    pub fn is_cuda(&self) -> bool {
        matches!(self, Self::Cuda(_))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("CPU"),
            Self::Cuda(device) => write!(f, "{} (cuda:{})", device.info().name, device.info().ordinal),
        }
    }
}

/// What a GPU is and has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The marketing name.
    pub name: String,
    /// The number it is asked for by.
    pub ordinal: usize,
    /// The compute capability, major and minor.
    pub compute_capability: (i32, i32),
    /// The architecture that kernels are compiled for, such as `sm_90a`.
    pub arch: String,
    /// How many multiprocessors it has.
    pub sm_count: usize,
    /// What tells this very GPU from every other, in every process and for every user: `GPU-3f1c…`.
    pub uuid: String,
    /// The most shared memory a block can have, in bytes.
    pub smem_optin_bytes: usize,
    /// How much shared memory a multiprocessor has, in bytes.
    pub smem_per_sm_bytes: usize,
    /// How many threads a multiprocessor keeps at once.
    pub threads_per_sm: usize,
    /// How many threads a block can have.
    pub threads_per_block: usize,
    /// How many 32-bit registers a multiprocessor has.
    pub registers_per_sm: usize,
    /// The size of the level 2 cache in bytes.
    pub l2_bytes: usize,
    /// The size of its memory in bytes.
    pub total_memory: usize,
    /// The highest clock of its memory in kHz; 0 where the driver does not say.
    pub memory_clock_khz: u32,
    /// The newest CUDA version the driver knows, major and minor.
    pub driver_version: (i32, i32),
}

/// A GPU's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceMemory {
    /// What nobody has taken.
    pub free: usize,
    /// All of it.
    pub total: usize,
}

impl DeviceInfo {
    /// What candidates are pruned and ranked by: the limits the driver tells, not those of the architecture's table.
    pub fn machine(&self) -> Machine {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let limits = Limits {
            smem_per_block: number(self.smem_optin_bytes),
            smem_per_sm: number(self.smem_per_sm_bytes),
            threads_per_block: number(self.threads_per_block),
            threads_per_sm: number(self.threads_per_sm),
            registers_per_thread: Limits::REGISTERS_PER_THREAD,
            registers_per_sm: number(self.registers_per_sm),
        };
        Machine { limits, sm_count: number(self.sm_count) }
    }
}

/// The architecture to compile for: with the features of that very architecture where there are such (`a`).
/// None below Ampere, whose cp.async and bf16 tensor cores every kernel needs, and for what is not yet known.
fn arch_of((major, minor): (i32, i32)) -> Option<&'static str> {
    Arch::from_compute_capability(major, minor).map(Arch::name)
}
