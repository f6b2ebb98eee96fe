//! Whether work that was put on a stream is done.

use super::current::Entered;
use super::error::cuda;
use super::{CudaDevice, DeviceError};
use cudarc::driver::CudaEvent;
use std::mem::ManuallyDrop;

/// A place in a stream's work. It outlives the stream.
pub(crate) struct Event {
    /// Destroyed with its GPU current.
    event: ManuallyDrop<CudaEvent>,
}

impl Event {
    /// The end of what is on the device's stream now, which must not be captured.
    pub(crate) fn new(device: &CudaDevice) -> Result<Self, DeviceError> {
        let _current = device.enter()?;
        let event = cuda("cuEventCreate", device.context().new_event(None))?;
        let event = Event { event: ManuallyDrop::new(event) };
        event.renew(device)?;
        Ok(event)
    }

    /// Moves it to the end of what is on the device's stream now.
    pub(crate) fn renew(&self, device: &CudaDevice) -> Result<(), DeviceError> {
        let _current = device.enter()?;
        cuda("cuEventRecord", self.event.record(device.stream()))
    }

    /// Whether the GPU has come there. Nothing waits.
    pub(crate) fn is_done(&self) -> bool {
        self.event.is_complete()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _current = Entered::new(self.event.context());
        // SAFETY: nothing uses it after this.
        unsafe { ManuallyDrop::drop(&mut self.event) };
    }
}
