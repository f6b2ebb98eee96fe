//! The GPU memory that device functions' slice captures live in, and when it is freed.
//!
//! Launches on a stream of the caller's, or in a graph, may still read a capture when the last attention that has it is gone. To wait
//! for them would break a capture that another thread is at: memory is kept instead until nothing reads it any more, and freed when
//! the next captures are made.

use crate::Error;
use crate::device::{CudaDevice, DeviceBuffer, DeviceError, Event};
use std::sync::{Arc, Mutex, PoisonError};

/// Slices of one set of functions.
pub(super) struct Slices {
    /// The GPU's own: its stream is there as long as the process, whatever becomes of the caller's.
    device: CudaDevice,
    memory: Memory,
}

/// What is kept until it is done with.
#[derive(Default)]
struct Memory {
    buffers: Vec<DeviceBuffer>,
    /// The ends of the last launches on streams of callers', by the streams' numbers.
    launches: Mutex<Vec<(u64, Event)>>,
}

/// What nobody has any more, with the number of its GPU.
static PARKED: Mutex<Vec<(usize, Memory)>> = Mutex::new(Vec::new());

impl Slices {
    /// None yet. What is parked on the GPU and done with is freed.
    pub(super) fn new(device: &CudaDevice) -> Result<Self, Error> {
        let device = CudaDevice::new(device.info().ordinal)?;
        free_parked(&device)?;
        Ok(Slices { device, memory: Memory::default() })
    }

    /// Copies a slice to the GPU, ready for every stream; its address.
    pub(super) fn upload(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        let buffer = self.device.upload(bytes)?;
        let address = buffer.address();
        self.memory.buffers.push(buffer);
        Ok(address)
    }

    /// Whether the captures are on the GPU that `device` is.
    pub(super) fn are_on(&self, device: &CudaDevice) -> bool {
        self.memory.buffers.is_empty() || self.ordinal() == device.info().ordinal
    }

    pub(super) fn ordinal(&self) -> usize {
        self.device.info().ordinal
    }

    /// To be called after each launch that reads them.
    pub(super) fn launched(self: &Arc<Self>, device: &CudaDevice) -> Result<(), DeviceError> {
        // Of the GPU's own stream they are freed on that stream, behind its launches.
        let nothing = self.memory.buffers.is_empty();
        if nothing || device.keep_in_graph(self.clone())? || device.has_stream_of(&self.device) {
            return Ok(());
        }
        let stream = device.stream_number()?;
        let mut launches = self.memory.launches.lock().unwrap_or_else(PoisonError::into_inner);
        match launches.iter().find(|(known, _)| *known == stream) {
            Some((_, end)) => end.renew(device)?,
            None => launches.push((stream, Event::new(device)?)),
        }
        Ok(())
    }
}

impl Drop for Slices {
    /// Calls no driver: a graph drops its captures on a thread that must not.
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if !memory.buffers.is_empty() {
            PARKED.lock().unwrap_or_else(PoisonError::into_inner).push((self.ordinal(), memory));
        }
    }
}

impl Memory {
    fn is_done(&mut self) -> bool {
        let launches = self.launches.get_mut().unwrap_or_else(PoisonError::into_inner);
        launches.iter().all(|(_, end)| end.is_done())
    }
}

/// Frees what is parked on a GPU and done with. Nothing waits; what is not done stays parked.
fn free_parked(device: &CudaDevice) -> Result<(), DeviceError> {
    let here = device.info().ordinal;
    let any = PARKED.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|(gpu, _)| *gpu == here);
    // Who captures the GPU's own stream would get the freeing into the graph.
    if !any || device.is_capturing()? {
        return Ok(());
    }
    let _current = device.enter_relaxed()?;
    // The lock is not held while the driver is called: a graph may be parking its captures at this moment.
    let parked = std::mem::take(&mut *PARKED.lock().unwrap_or_else(PoisonError::into_inner));
    let (mut done, mut left) = (Vec::new(), Vec::new());
    for (gpu, mut memory) in parked {
        let to = if gpu == here && memory.is_done() { &mut done } else { &mut left };
        to.push((gpu, memory));
    }
    PARKED.lock().unwrap_or_else(PoisonError::into_inner).extend(left);
    Ok(())
}
