//! What a GPU is and has.

use super::error::cuda;
use super::{DeviceError, DeviceInfo, arch_of};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;

/// Asks the driver.
///
/// # Errors
/// A GPU older than Ampere, or an error of the driver's.
pub(super) fn inquire(context: &CudaContext, driver_version: (i32, i32)) -> Result<DeviceInfo, DeviceError> {
    let name = cuda("cuDeviceGetName", context.name())?;
    let found = cuda("cuDeviceGetAttribute", context.compute_capability())?;
    let Some(arch) = arch_of(found) else { return Err(DeviceError::UnsupportedGpu { name, found }) };
    let attribute = |attribute| {
        let value = cuda("cuDeviceGetAttribute", context.attribute(attribute))?;
        Ok(usize::try_from(value).unwrap_or_default())
    };
    Ok(DeviceInfo {
        ordinal: context.ordinal(),
        compute_capability: found,
        arch: arch.to_string(),
        sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        smem_optin_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        smem_per_sm_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        threads_per_sm: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
        threads_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        uuid: uuid(cuda("cuDeviceGetUuid", context.uuid())?.bytes.map(|byte| byte as u8)),
        registers_per_sm: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR)?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        memory_clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)
            .map_or(0, |khz| u32::try_from(khz).unwrap_or_default()),
        total_memory: cuda("cuDeviceTotalMem", context.total_mem())?,
        name,
        driver_version,
    })
}

/// As `nvidia-smi -L` prints it.
fn uuid(bytes: [u8; 16]) -> String {
    let hex = |range: std::ops::Range<usize>| {
        bytes[range].iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    };
    format!("GPU-{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16))
}
