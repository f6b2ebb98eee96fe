//! A CUDA GPU: its memory, its stream, its clock.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut};

use super::current::{Entered, Relaxed};
use super::error::cuda;
use super::inquire::inquire;
use super::queue::TileQueues;
use super::{DeviceError, DeviceInfo, LoadedKernel, driver};
use crate::compile::Cubin;
use crate::toolchain::Toolchain;

/// A CUDA GPU with one stream that all of its work goes through, in order. Cloning is cheap, and all who ask for the
/// same GPU get the same stream: a buffer that one has filled is ready for the other. Once opened it stays open for the
/// life of the process.
#[derive(Clone)]
pub struct CudaDevice {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    info: DeviceInfo,
    queues: Arc<TileQueues>,
}

impl CudaDevice {
    /// The GPU with this number, from 0.
    ///
    /// # Errors
    /// No driver, a driver that is too old, no GPU of that number, or a GPU older than Ampere.
    pub fn new(ordinal: usize) -> Result<Self, DeviceError> {
        // They stay open: closing one would take the primary context from under a framework that uses it too.
        static OPEN: Mutex<BTreeMap<usize, CudaDevice>> = Mutex::new(BTreeMap::new());
        let (driver_version, count) = driver::start()?;
        if ordinal >= count {
            return Err(DeviceError::NoSuchGpu { ordinal, count });
        }
        // Opening a GPU makes it the thread's current one: a framework's own current GPU must stay.
        let _current = Entered::here()?;
        let _relaxed = Relaxed::new()?;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = open.get(&ordinal) {
            return Ok(device.clone());
        }
        let device = Self::open(ordinal, driver_version)?;
        open.insert(ordinal, device.clone());
        Ok(device)
    }

    fn open(ordinal: usize, driver_version: (i32, i32)) -> Result<Self, DeviceError> {
        let context = cuda("cuDevicePrimaryCtxRetain", CudaContext::new(ordinal))?;
        let info = inquire(&context, driver_version)?;
        // By default cudarc records two events with every use of a buffer, to order the work of several streams.
        // SAFETY: every buffer of this context is allocated, used and freed on the one stream below, in order.
        unsafe { context.disable_event_tracking() };
        // Not the default stream: that one waits for every other stream, and cannot be captured into a graph.
        let stream = cuda("cuStreamCreate", context.new_stream())?;
        driver::keep_freed_memory(&context);
        let queues = Arc::new(TileQueues::new(&stream)?);
        Ok(Self { inner: Arc::new(Inner { context, stream, info, queues }) })
    }

    /// The same GPU with its work on a stream of the caller's (a `cudaStream_t` or `CUstream`): PyTorch's current one, or
    /// one that is being captured into a graph.
    ///
    /// # Safety
    /// The stream belongs to this GPU's primary context and outlives everything made with the device returned. Memory
    /// that was used on another stream is ordered by the caller, with events.
    pub unsafe fn on_stream(&self, stream: *mut c_void) -> Self {
        let inner = &*self.inner;
        // SAFETY: the caller answers for the stream; it is borrowed, so dropping it here destroys nothing.
        let stream = unsafe { inner.context.wrap_borrowed_stream(stream.cast()) };
        let (context, info, queues) = (inner.context.clone(), inner.info.clone(), inner.queues.clone());
        Self { inner: Arc::new(Inner { context, stream, info, queues }) }
    }

    /// What the GPU is and has.
    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }

    /// The architecture that kernels are compiled for, such as `sm_90a`.
    pub fn arch(&self) -> &str {
        &self.inner.info.arch
    }

    /// The stream that all work goes through, a `CUstream` or `cudaStream_t`: for events of the caller's, which order its own work with
    /// Tilewright's. It is alive as long as this device.
    ///
    /// What cudarc makes of it stays inside: buffers of that context are used on one stream alone, which nobody else can promise.
    /// ```compile_fail,E0624
    /// # let device = tilewright::device::CudaDevice::new(0)?;
    /// let buffer = device.stream().alloc_zeros::<u8>(16);
    /// # Ok::<(), tilewright::device::DeviceError>(())
    /// ```
    /// ```compile_fail,E0624
    /// # let device = tilewright::device::CudaDevice::new(0)?;
    /// let stream = device.context().new_stream();
    /// # Ok::<(), tilewright::device::DeviceError>(())
    /// ```
    pub fn cu_stream(&self) -> *mut c_void {
        self.inner.stream.cu_stream().cast()
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.inner.stream
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.inner.context
    }

    /// Whether work on the two is in one order.
    pub(crate) fn has_stream_of(&self, other: &CudaDevice) -> bool {
        self.inner.stream.cu_stream() == other.inner.stream.cu_stream()
    }

    pub(super) fn tile_queues(&self) -> &TileQueues {
        &self.inner.queues
    }

    /// Free and total memory, in bytes.
    ///
    /// # Errors
    /// An error of the driver's.
    pub fn memory(&self) -> Result<(usize, usize), DeviceError> {
        let _current = self.enter()?;
        cuda("cuMemGetInfo", self.inner.context.mem_get_info())
    }

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
    /// Sizes that differ, or an error of the driver's.
    pub fn htod(&self, host: &[u8], buffer: &mut DeviceBuffer) -> Result<(), DeviceError> {
        if host.len() != buffer.bytes {
            return Err(DeviceError::CopySize { host: host.len(), device: buffer.bytes });
        }
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
    /// Sizes that differ, or an error of the driver's.
    pub fn dtoh(&self, buffer: &DeviceBuffer, host: &mut [u8]) -> Result<(), DeviceError> {
        if host.len() != buffer.bytes {
            return Err(DeviceError::CopySize { host: host.len(), device: buffer.bytes });
        }
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
    /// An error of the driver's.
    pub fn download(&self, buffer: &DeviceBuffer) -> Result<Vec<u8>, DeviceError> {
        let mut host = vec![0; buffer.bytes];
        self.dtoh(buffer, &mut host)?;
        Ok(host)
    }

    /// The bytes at an address, once the work on the stream is done.
    ///
    /// # Safety
    /// `bytes` bytes from `address` on are memory of this GPU, and nothing writes them meanwhile.
    pub(crate) unsafe fn download_address(&self, address: u64, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        let mut host = vec![0; bytes];
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller answers for the source; the destination has that many bytes and outlives the wait below.
        let copied = unsafe {
            cudarc::driver::result::memcpy_dtoh_async(&mut host, address, self.stream().cu_stream())
        };
        self.synchronize()?;
        cuda("cuMemcpyDtoHAsync", copied)?;
        Ok(host)
    }

    /// Sets every byte of a buffer.
    ///
    /// # Errors
    /// An error of the driver's.
    pub fn fill(&self, buffer: &mut DeviceBuffer, byte: u8) -> Result<(), DeviceError> {
        let stream = self.stream();
        let _current = self.enter()?;
        let (pointer, _record) = buffer.slice.device_ptr_mut(stream);
        // SAFETY: the buffer has that many bytes, and is used on this stream alone.
        let set = unsafe {
            cudarc::driver::result::memset_d8_async(pointer, byte, buffer.bytes, stream.cu_stream())
        };
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

    /// Makes this GPU the calling thread's current one until the value returned is dropped.
    ///
    /// # Errors
    /// An error of the driver's.
    pub(crate) fn enter(&self) -> Result<Entered, DeviceError> {
        Entered::new(&self.inner.context)
    }

    /// The same for calls that allocate, copy or wait, beside the captures of other threads.
    fn enter_relaxed(&self) -> Result<(Relaxed, Entered), DeviceError> {
        let entered = self.enter()?;
        Ok((Relaxed::new()?, entered))
    }

    /// Waits until all work is done. An error of a kernel shows here at the latest.
    ///
    /// # Errors
    /// An error of the driver's.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        let _current = self.enter_relaxed()?;
        cuda("cuStreamSynchronize", self.stream().synchronize())
    }

    /// Makes a cubin ready to launch.
    ///
    /// # Errors
    /// A cubin for another architecture, a driver older than the cubin's CUDA, or an error of the driver's.
    pub fn load(&self, cubin: &Cubin) -> Result<LoadedKernel, DeviceError> {
        let info = self.info();
        if cubin.arch != info.arch {
            return Err(DeviceError::WrongArch {
                kernel: cubin.name.clone(),
                found: cubin.arch.clone(),
                needed: info.arch.clone(),
                name: info.name.clone(),
            });
        }
        check_driver(info.driver_version, cubin.nvrtc)?;
        if !cubin.is_whole() {
            return Err(DeviceError::BrokenCubin { kernel: cubin.name.clone(), bytes: cubin.bytes().len() });
        }
        let _current = self.enter()?;
        LoadedKernel::new(self, cubin)
    }

    /// Checks that this driver loads what `toolchain` compiles, before anything is compiled.
    ///
    /// # Errors
    /// [`DeviceError::DriverTooOld`].
    pub fn check_toolchain(&self, toolchain: &Toolchain) -> Result<(), DeviceError> {
        check_driver(self.info().driver_version, toolchain.version())
    }

    /// The milliseconds that the GPU takes for the work `enqueue` puts on the stream.
    ///
    /// # Errors
    /// What `enqueue` returns, or an error of the driver's.
    pub fn time_ms(
        &self,
        enqueue: impl FnOnce(&CudaDevice) -> Result<(), DeviceError>,
    ) -> Result<f32, DeviceError> {
        let event = || {
            let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            cuda("cuEventCreate", self.inner.context.new_event(flags))
        };
        let _current = self.enter_relaxed()?;
        let (start, end) = (event()?, event()?);
        cuda("cuEventRecord", start.record(self.stream()))?;
        enqueue(self)?;
        cuda("cuEventRecord", end.record(self.stream()))?;
        cuda("cuEventElapsedTime", start.elapsed_ms(&end))
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CudaDevice").field(self.info()).finish()
    }
}

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
        let _current = (Relaxed::new(), Entered::new(self.slice.stream().context()));
        // SAFETY: nothing uses it after this.
        unsafe { ManuallyDrop::drop(&mut self.slice) };
    }
}

/// Whether a driver loads the cubins of an NVRTC: only the major versions matter.
pub(super) fn check_driver(driver: (i32, i32), nvrtc: (i32, i32)) -> Result<(), DeviceError> {
    if nvrtc.0 <= driver.0 {
        return Ok(());
    }
    Err(DeviceError::DriverTooOld {
        found: driver,
        needed: (nvrtc.0, 0),
        what: format!("a kernel compiled with NVRTC {}.{}", nvrtc.0, nvrtc.1),
        hint: "Install a newer driver, or set TILEWRIGHT_NVRTC to an NVRTC of the driver's major version \
               (12.8 or newer).",
    })
}
