//! Streams whose work goes into a graph instead of running.

use super::error::cuda;
use super::{CudaDevice, DeviceError};
use cudarc::driver::sys::{self, CUstreamCaptureStatus as Status};
use std::any::Any;
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// What a graph keeps alive.
type Kept = Arc<dyn Any + Send + Sync>;

impl CudaDevice {
    /// Whether what is put on the stream goes into a graph instead of running.
    ///
    /// # Errors
    /// An error of the driver's.
    pub fn is_capturing(&self) -> Result<bool, DeviceError> {
        let _current = self.enter()?;
        let status = cuda("cuStreamIsCapturing", self.stream().capture_status())?;
        Ok(status != Status::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    /// Where the stream is captured: keeps `kept` as long as the graph, whatever is instantiated from it, and its launches. Whether
    /// that is so. The driver drops it, on a thread of its own from which the driver must not be called.
    ///
    /// # Errors
    /// An error of the driver's.
    pub(crate) fn keep_in_graph(&self, kept: Kept) -> Result<bool, DeviceError> {
        let _current = self.enter()?;
        let (mut status, mut graph) = (Status::CU_STREAM_CAPTURE_STATUS_NONE, null_mut());
        // Not wanted, but asked for without them the driver may refuse.
        let (mut id, mut count, mut dependencies, mut edges) = (0, 0, null(), null());
        // SAFETY: the stream is alive, and the pointers are valid for a write.
        let asked = unsafe {
            sys::cuStreamGetCaptureInfo_v3(
                self.stream().cu_stream(),
                &mut status,
                &mut id,
                &mut graph,
                &mut dependencies,
                &mut edges,
                &mut count,
            )
        };
        cuda("cuStreamGetCaptureInfo", asked.result())?;
        if status != Status::CU_STREAM_CAPTURE_STATUS_ACTIVE {
            return Ok(false);
        }
        let no_wait = sys::CUuserObject_flags_enum::CU_USER_OBJECT_NO_DESTRUCTOR_SYNC as u32;
        let moved = sys::CUuserObjectRetain_flags_enum::CU_GRAPH_USER_OBJECT_MOVE as u32;
        let (mut object, pointer) = (null_mut(), Box::into_raw(Box::new(kept)));
        // SAFETY: `let_go` takes the pointer back, and is called once.
        let created =
            unsafe { sys::cuUserObjectCreate(&mut object, pointer.cast(), Some(let_go), 1, no_wait) };
        if let Err(error) = cuda("cuUserObjectCreate", created.result()) {
            // SAFETY: nobody took it.
            drop(unsafe { Box::from_raw(pointer) });
            return Err(error);
        }
        // SAFETY: the graph is being captured, so that it is alive; the one reference to the object goes to it.
        let retained = unsafe { sys::cuGraphRetainUserObject(graph, object, 1, moved) };
        if let Err(error) = cuda("cuGraphRetainUserObject", retained.result()) {
            // SAFETY: the reference is still this function's.
            let _ = unsafe { sys::cuUserObjectRelease(object, 1) };
            return Err(error);
        }
        Ok(true)
    }
}

/// Drops what a graph has kept.
unsafe extern "C" fn let_go(kept: *mut c_void) {
    // SAFETY: `keep_in_graph` made it of a box, and gave it away.
    drop(unsafe { Box::from_raw(kept.cast::<Kept>()) });
}
