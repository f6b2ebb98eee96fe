//! The driver: is its library there, is it new enough, does its memory pool keep memory. cudarc panics where either of the
//! first two is not so: nothing of it is called before they are answered.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::{CudaContext, result, sys};

use super::DeviceError;
use super::error::cuda;

/// The oldest driver, by the newest CUDA version it knows.
///
/// A driver loads cubins of its own major version, whatever their minor version, and of older ones. The oldest NVRTC
/// that Tilewright works with is 12.8, and the driver functions it calls are all in 12.8. Cubins from NVRTC 13 need a driver of
/// CUDA 13 (release 580): that is checked when a cubin is loaded.
pub const OLDEST_DRIVER: (i32, i32) = (12, 8);

/// The newest CUDA version that the installed driver knows, major and minor.
///
/// # Errors
/// [`DeviceError::NoDriver`], or the driver's own error.
pub fn driver_version() -> Result<(i32, i32), DeviceError> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: it opens and closes the driver's library.
    if !PRESENT.get_or_init(|| unsafe { sys::is_culib_present() }) {
        return Err(DeviceError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the library is there, the function is as old as the library, and the pointer is valid for a write.
    let result = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    cuda("cuDriverGetVersion", result)?;
    Ok((version / 1000, version % 1000 / 10))
}

/// The process that started the driver; 0 before.
static STARTED_BY: AtomicU32 = AtomicU32::new(0);

/// That this process was not forked from one that had started the driver, for CUDA does not survive a fork.
///
/// # Errors
/// [`DeviceError::Forked`].
#[doc(hidden)]
pub fn expect_own_process() -> Result<(), DeviceError> {
    match STARTED_BY.load(Ordering::Relaxed) {
        0 => Ok(()),
        by if by == std::process::id() => Ok(()),
        by => Err(DeviceError::Forked { by }),
    }
}

/// Starts the driver and returns its version and how many GPUs there are.
pub(super) fn start() -> Result<((i32, i32), usize), DeviceError> {
    // Asked here, before a lock is waited for that another thread held when the process was forked.
    expect_own_process()?;
    let version = driver_version()?;
    if version < OLDEST_DRIVER {
        return Err(DeviceError::DriverTooOld {
            found: version,
            needed: OLDEST_DRIVER,
            what: "Tilewright".to_string(),
            hint: "Install a newer driver, or use the CPU.",
        });
    }
    match result::init() {
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Err(DeviceError::NoGpu),
        started => cuda("cuInit", started)?,
    }
    STARTED_BY.store(std::process::id(), Ordering::Relaxed);
    let count = cuda("cuDeviceGetCount", result::device::get_count())?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok((version, count)),
        _ => Err(DeviceError::NoGpu),
    }
}

/// Lets the driver's memory pool keep what is freed. By default every synchronisation gives it back to the system,
/// and the next call pays for mapping it anew.
pub(super) fn keep_freed_memory(context: &CudaContext) {
    if !context.has_async_alloc() {
        return;
    }
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: the device is this context's, and both pointers are valid for what is read and written through them.
    let result = unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()).result().and_then(|()| {
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()).result()
        })
    };
    if let Err(error) = result {
        // Slower, and nothing else.
        tracing::debug!(%error, "the memory pool keeps its release threshold");
    }
}
