//! The calling thread's current context, and what it may do while another thread captures a graph.

use super::DeviceError;
use super::error::cuda;
use cudarc::driver::{CudaContext, result, sys};

/// Makes a GPU the calling thread's current one until it is dropped: CUDA's runtime, and PyTorch with it, takes the thread's current
/// GPU from the driver's current context. Whatever calls the driver holds one of these, drops included.
#[must_use = "the GPU is current until this is dropped"]
pub(crate) struct Entered {
    /// What to put back; null stands for none. Absent where the GPU was the current one already.
    before: Option<sys::CUcontext>,
}

impl Entered {
    pub(super) fn new(context: &CudaContext) -> Result<Self, DeviceError> {
        let before = current()?;
        if before == context.cu_ctx() {
            return Ok(Entered { before: None });
        }
        // Made first, so that a half-done change is undone too.
        let entered = Entered { before: Some(before) };
        cuda("cuCtxSetCurrent", context.bind_to_thread())?;
        Ok(entered)
    }

    /// What is current now comes back, whatever happens in between.
    pub(super) fn here() -> Result<Self, DeviceError> {
        Ok(Entered { before: Some(current()?) })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // SAFETY: it was the current context a moment ago; null stands for none.
            let _ = unsafe { sys::cuCtxSetCurrent(before) };
        }
    }
}

fn current() -> Result<sys::CUcontext, DeviceError> {
    let current = cuda("cuCtxGetCurrent", result::ctx::get_current())?;
    Ok(current.unwrap_or(std::ptr::null_mut()))
}

/// Until it is dropped, the thread makes calls that CUDA otherwise forbids to every thread while one of them captures a graph (in the
/// mode that PyTorch captures in): those that allocate, copy, load, wait and ask. Such a call would not only fail: it would break the
/// other thread's capture. None of ours looks at a stream that others capture.
#[must_use = "the thread is relaxed until this is dropped"]
pub(super) struct Relaxed {
    /// The mode to put back; absent where the driver would not change it, and the calls must do as they are.
    before: Option<sys::CUstreamCaptureMode>,
}

impl Relaxed {
    pub(super) fn new() -> Self {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the pointer is valid for what is read and written through it.
        let exchanged = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }.result();
        Relaxed { before: exchanged.is_ok().then_some(mode) }
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        if let Some(before) = &mut self.before {
            // SAFETY: as above.
            let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(before) };
        }
    }
}
