//! Memory of a GPU.

use super::current::{Entered, Relaxed};
use super::error::cuda;
use super::{CudaDevice, DeviceError};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, result, sys};
use std::mem::ManuallyDrop;

/// Memory of a GPU, freed when dropped, after the work that was on the stream by then.
#[derive(Debug)]
pub struct DeviceBuffer {
    /// Freed with its GPU current.
    slice: ManuallyDrop<CudaSlice<u8>>,
    bytes: usize,
}

impl DeviceBuffer {
    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Its address on the GPU. It is valid while the buffer lives, for work on its device's stream.
    pub fn address(&self) -> u64 {
        self.slice.device_ptr(self.slice.stream()).0
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // An error has nobody to go to; without the GPU the driver refuses what follows, and nothing else comes of it.
        let _current = (Entered::new(self.slice.stream().context()), Relaxed::new());
        // SAFETY: nothing uses it after this.
        unsafe { ManuallyDrop::drop(&mut self.slice) };
    }
}

impl CudaDevice {
    /// A buffer of `bytes` zero bytes, aligned to 256 bytes.
    ///
    /// # Errors
    /// An error of the driver's, such as too little memory.
    pub fn zeroed(&self, bytes: usize) -> Result<DeviceBuffer, DeviceError> {
        let _current = self.enter_relaxed()?;
        let slice = cuda("cuMemAllocAsync", self.stream().alloc_zeros(bytes.max(1)))?;
        Ok(DeviceBuffer { slice: ManuallyDrop::new(slice), bytes })
    }

    /// A buffer of `bytes` bytes that hold anything, aligned to 256 bytes.
    ///
    /// # Errors
    /// An error of the driver's, such as too little memory.
    pub fn uninit(&self, bytes: usize) -> Result<DeviceBuffer, DeviceError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: any byte is a valid `u8`. The driver refuses empty buffers.
        let slice = cuda("cuMemAllocAsync", unsafe { self.stream().alloc(bytes.max(1)) })?;
        Ok(DeviceBuffer { slice: ManuallyDrop::new(slice), bytes })
    }

    /// A buffer with a copy of `host`.
    ///
    /// # Errors
    /// An error of the driver's, such as too little memory.
    pub fn upload(&self, host: &[u8]) -> Result<DeviceBuffer, DeviceError> {
        let mut buffer = self.uninit(host.len())?;
        self.htod(host, &mut buffer)?;
        Ok(buffer)
    }

    /// Copies `host` to `buffer`, and waits until that is done.
    ///
    /// # Errors
    /// Sizes that differ, a buffer of another GPU, or an error of the driver's.
    pub fn htod(&self, host: &[u8], buffer: &mut DeviceBuffer) -> Result<(), DeviceError> {
        self.expect_copy(host.len(), buffer)?;
        if host.is_empty() {
            return Ok(());
        }
        let _current = self.enter_relaxed()?;
        cuda("cuMemcpyHtoDAsync", self.stream().memcpy_htod(host, &mut *buffer.slice))?;
        // The copy reads `host` after the call returns when that memory is page-locked.
        self.synchronize()
    }

    /// Copies `buffer` to `host`, and waits until that is done.
    ///
    /// # Errors
    /// Sizes that differ, a buffer of another GPU, or an error of the driver's.
    pub fn dtoh(&self, buffer: &DeviceBuffer, host: &mut [u8]) -> Result<(), DeviceError> {
        self.expect_copy(host.len(), buffer)?;
        if host.is_empty() {
            return Ok(());
        }
        let _current = self.enter_relaxed()?;
        let view = buffer.slice.slice(..buffer.bytes);
        let copied = self.stream().memcpy_dtoh(&view, host);
        // The wait comes first: even a failed call may have begun to write to `host`.
        self.synchronize()?;
        cuda("cuMemcpyDtoHAsync", copied)
    }

    /// A buffer's bytes.
    ///
    /// # Errors
    /// A buffer of another GPU, or an error of the driver's.
    pub fn download(&self, buffer: &DeviceBuffer) -> Result<Vec<u8>, DeviceError> {
        let mut host = vec![0; buffer.bytes];
        self.dtoh(buffer, &mut host)?;
        Ok(host)
    }

    /// The buffer's own stream, on which it is allocated and freed, is one of this GPU: that of another is in no order with this one.
    fn expect_own(&self, buffer: &DeviceBuffer) -> Result<(), DeviceError> {
        let [found, needed] = [buffer.slice.stream(), self.stream()].map(|stream| stream.context().ordinal());
        if found == needed { Ok(()) } else { Err(DeviceError::OtherGpu { found, needed }) }
    }

    fn expect_copy(&self, host: usize, buffer: &DeviceBuffer) -> Result<(), DeviceError> {
        self.expect_own(buffer)?;
        let device = buffer.bytes;
        if host == device { Ok(()) } else { Err(DeviceError::CopySize { host, device }) }
    }

    /// The bytes at an address, once the work on the stream is done.
    ///
    /// # Safety
    /// `bytes` bytes from `address` on are memory of this GPU, and nothing writes them meanwhile.
    pub(crate) unsafe fn download_address(&self, address: u64, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        let mut host = vec![0; bytes];
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller answers for the source; the destination has that many bytes and outlives the wait below.
        let copied = unsafe { result::memcpy_dtoh_async(&mut host, address, self.stream().cu_stream()) };
        self.synchronize()?;
        cuda("cuMemcpyDtoHAsync", copied)?;
        Ok(host)
    }

    /// Sets every byte of a buffer.
    ///
    /// # Errors
    /// A buffer of another GPU, or an error of the driver's.
    pub fn fill(&self, buffer: &mut DeviceBuffer, byte: u8) -> Result<(), DeviceError> {
        self.expect_own(buffer)?;
        let stream = self.stream();
        let _current = self.enter()?;
        let (pointer, _record) = buffer.slice.device_ptr_mut(stream);
        // SAFETY: the buffer has that many bytes, and is used on this stream alone.
        let set = unsafe { result::memset_d8_async(pointer, byte, buffer.bytes, stream.cu_stream()) };
        cuda("cuMemsetD8Async", set)
    }

    /// Sets every byte of rows of memory: `width` bytes each, the first at `address` and every next one `pitch` bytes further.
    ///
    /// # Errors
    /// An error of the driver's.
    ///
    /// # Safety
    /// The rows are this GPU's memory, and nothing else uses them meanwhile.
    pub(crate) unsafe fn set_rows(
        &self,
        address: u64,
        byte: u8,
        [width, rows]: [u64; 2],
        pitch: u64,
    ) -> Result<(), DeviceError> {
        let _current = self.enter()?;
        let (stream, [width, rows, pitch]) =
            (self.stream().cu_stream(), [width, rows, pitch].map(|bytes| bytes as usize));
        // SAFETY: the caller's.
        let set = unsafe {
            match rows {
                1 => sys::cuMemsetD8Async(address, byte, width, stream),
                _ => sys::cuMemsetD2D8Async(address, pitch, byte, width, rows, stream),
            }
        };
        cuda("cuMemsetD2D8Async", set.result())
    }

    /// Sets 32-bit words of memory at an address.
    ///
    /// # Errors
    /// An error of the driver's.
    ///
    /// # Safety
    /// There are `words` words of this GPU's memory at `address`, a multiple of 4, and nothing else uses them meanwhile.
    pub(crate) unsafe fn set_words(&self, address: u64, word: u32, words: usize) -> Result<(), DeviceError> {
        if words == 0 {
            return Ok(());
        }
        let _current = self.enter()?;
        let stream = self.stream().cu_stream();
        // SAFETY: the caller's.
        let set = unsafe { sys::cuMemsetD32Async(address, word, words, stream) }.result();
        cuda("cuMemsetD32Async", set)
    }
}
