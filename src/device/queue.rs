//! Counters in a GPU's memory from which the blocks of a launch take their tiles.

use super::error::cuda;
use super::{CudaDevice, DeviceError};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, sys};
use std::sync::{Arc, Mutex, PoisonError};

/// Zeros in a GPU's memory that launches count in. A kernel leaves its counter at zero, so that the next launch on the
/// same stream finds it ready: nothing is set, allocated or waited for. Launches that may overlap have different counters.
pub(super) struct TileQueues {
    counters: CudaSlice<u32>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// By the stream's number, which the driver gives to no other stream later.
    streams: Vec<(u64, usize)>,
    count: usize,
}

impl Taken {
    /// The place of a stream's counter, or a new one for a launch that is captured. None when all are taken.
    fn place(&mut self, stream: Option<u64>, most: usize) -> Option<usize> {
        let known = self.streams.iter().find(|(known, _)| Some(*known) == stream);
        if let Some(&(_, place)) = known {
            return Some(place);
        }
        let place = self.count;
        if place == most {
            return None;
        }
        self.count += 1;
        self.streams.extend(stream.map(|stream| (stream, place)));
        Some(place)
    }
}

impl TileQueues {
    /// 256 KB. Captured launches use them up, one each: a graph may be launched at any time later, beside any stream.
    const COUNTERS: usize = 1 << 16;

    /// Zeroed, for every stream.
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, DeviceError> {
        let counters = cuda("cuMemAllocAsync", stream.alloc_zeros(Self::COUNTERS))?;
        // Other streams do not wait for this one.
        cuda("cuStreamSynchronize", stream.synchronize())?;
        Ok(TileQueues { counters, taken: Mutex::default() })
    }
}

impl CudaDevice {
    /// The address of a counter for a launch on this device's stream; 0 when there is none left: tiles are then taken in turn, which is slower where they are uneven.
    ///
    /// # Errors
    /// An error of the driver's.
    pub(crate) fn tile_queue(&self) -> Result<u64, DeviceError> {
        let queues = self.tile_queues();
        let stream = if self.is_capturing()? { None } else { Some(self.stream_number()?) };
        // Nothing panics between a change of one member and of the other.
        let mut taken = queues.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = taken.place(stream, TileQueues::COUNTERS) else {
            tracing::debug!(gpu = self.info().ordinal, "no counter is left: tiles are taken in turn");
            return Ok(0);
        };
        let (base, _record) = queues.counters.device_ptr(queues.counters.stream());
        Ok(base + (place * size_of::<u32>()) as u64)
    }

    /// The driver's number of the stream, which it gives to no other one later: also of the default stream, and of each thread's own.
    ///
    /// # Errors
    /// An error of the driver's.
    pub(crate) fn stream_number(&self) -> Result<u64, DeviceError> {
        let _current = self.enter()?;
        let mut number = 0;
        // SAFETY: the stream is alive, and the pointer is valid for a write.
        let asked = unsafe { sys::cuStreamGetId(self.stream().cu_stream(), &mut number) };
        cuda("cuStreamGetId", asked.result())?;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::Taken;

    #[test]
    fn a_stream_keeps_its_counter_and_captured_launches_share_none() {
        let mut taken = Taken::default();
        let mut places = |streams: &[Option<u64>]| -> Vec<_> {
            streams.iter().map(|&stream| taken.place(stream, 5)).collect()
        };
        assert_eq!(places(&[Some(7), Some(0), Some(7)]), [Some(0), Some(1), Some(0)]);
        assert_eq!(places(&[None, None, Some(8)]), [Some(2), Some(3), Some(4)]);
        // All are taken: who has one keeps it.
        assert_eq!(places(&[None, Some(9), Some(8)]), [None, None, Some(4)]);
    }
}
