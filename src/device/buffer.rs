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

/// Rows of bytes at regular distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Of the first.
    pub(crate) address: u64,
    /// Bytes of each.
    pub(crate) width: u64,
    /// How many there are.
    pub(crate) rows: u64,
    /// Bytes from one to the next.
    pub(crate) pitch: u64,
}

impl Rows {
    /// The most bytes between rows that the driver's calls for two dimensions take.
    const MOST_PITCH: u64 = i32::MAX as u64;

    /// The same rows, one by one where they are further apart than the driver takes.
    fn within_pitch(self) -> impl Iterator<Item = Rows> {
        let together = self.pitch <= Self::MOST_PITCH || self.rows == 1;
        let (parts, rows) = if together { (1, self.rows) } else { (self.rows, 1) };
        (0..parts).map(move |part| Rows { address: self.address + part * self.pitch, rows, ..self })
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

    /// Sets every byte of rows of memory.
    ///
    /// # Errors
    /// An error of the driver's.
    ///
    /// # Safety
    /// The rows are this GPU's memory, and nothing else uses them meanwhile.
    pub(crate) unsafe fn set_rows(&self, rows: Rows, byte: u8) -> Result<(), DeviceError> {
        let _current = self.enter()?;
        let stream = self.stream().cu_stream();
        for Rows { address, width, rows, pitch } in rows.within_pitch() {
            // SAFETY: the caller's.
            let set = unsafe {
                match rows {
                    1 => sys::cuMemsetD8Async(address, byte, width as usize, stream),
                    _ => {
                        let [pitch, width, rows] = [pitch, width, rows].map(|bytes| bytes as usize);
                        sys::cuMemsetD2D8Async(address, pitch, byte, width, rows, stream)
                    }
                }
            };
            cuda("cuMemsetD2D8Async", set.result())?;
        }
        Ok(())
    }

    /// Copies rows of memory to as many of the same width.
    ///
    /// # Errors
    /// An error of the driver's.
    ///
    /// # Safety
    /// All rows are this GPU's memory and apart, and nothing else uses them meanwhile.
    pub(crate) unsafe fn copy_rows(&self, from: Rows, to: Rows) -> Result<(), DeviceError> {
        let _current = self.enter()?;
        let stream = self.stream().cu_stream();
        let one_by_one = from.within_pitch().count() > 1 || to.within_pitch().count() > 1;
        let rows = if one_by_one { 1 } else { from.rows };
        for row in 0..from.rows / rows {
            let copy = sys::CUDA_MEMCPY2D {
                srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                srcDevice: from.address + row * from.pitch,
                srcPitch: if rows == 1 { 0 } else { from.pitch as usize },
                dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                dstDevice: to.address + row * to.pitch,
                dstPitch: if rows == 1 { 0 } else { to.pitch as usize },
                WidthInBytes: from.width as usize,
                Height: rows as usize,
                srcXInBytes: 0,
                srcY: 0,
                srcHost: std::ptr::null(),
                srcArray: std::ptr::null_mut(),
                dstXInBytes: 0,
                dstY: 0,
                dstHost: std::ptr::null_mut(),
                dstArray: std::ptr::null_mut(),
            };
            // SAFETY: the caller's; the struct is read before the call returns.
            let copied = unsafe {
                match rows {
                    1 => sys::cuMemcpyDtoDAsync_v2(copy.dstDevice, copy.srcDevice, copy.WidthInBytes, stream),
                    _ => sys::cuMemcpy2DAsync_v2(&copy, stream),
                }
            };
            cuda("cuMemcpy2DAsync", copied.result())?;
        }
        Ok(())
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
