//! A CUDA GPU: its stream, its clock.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;
use cudarc::driver::{CudaContext, CudaStream};

use super::current::{Entered, Relaxed};
use super::error::cuda;
use super::inquire::inquire;
use super::queue::TileQueues;
use super::{DeviceError, DeviceInfo, DeviceMemory, LoadedKernel, driver};
use crate::compile::Cubin;
use crate::services::Services;
use crate::toolchain::Toolchain;

/// A CUDA GPU with one stream that all of its work goes through, in order. Cloning is cheap, and all who ask for the
/// same GPU get the same stream: a buffer that one has filled is ready for the other. Once opened it stays open for the
/// life of the process.
#[derive(Clone)]
pub struct CudaDevice {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    info: DeviceInfo,
    queues: Arc<TileQueues>,
    services: Services,
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
        let _relaxed = Relaxed::new();
        let info = inquire(&context, driver_version)?;
        // By default cudarc records two events with every use of a buffer, to order the work of several streams.
        // SAFETY: every buffer of this context is allocated, used and freed on the one stream below, in order.
        unsafe { context.disable_event_tracking() };
        // Not the default stream: that one waits for every other stream, and cannot be captured into a graph.
        let stream = cuda("cuStreamCreate", context.new_stream())?;
        driver::keep_freed_memory(&context);
        let queues = Arc::new(TileQueues::new(&stream)?);
        let services = Services::from_env();
        Ok(Self { inner: Arc::new(Inner { context, stream, info, queues, services }) })
    }

    /// The same GPU with its work on a stream of the caller's (a `cudaStream_t` or `CUstream`): PyTorch's current one, or
    /// one that is being captured into a graph.
    ///
    /// # Safety
    /// The stream belongs to this GPU's primary context and outlives everything made with the device returned. Memory
    /// that was used on another stream is ordered by the caller, with events.
    pub unsafe fn on_stream(&self, stream: *mut c_void) -> Self {
        // SAFETY: the caller answers for the stream; it is borrowed, so dropping it here destroys nothing.
        let stream = unsafe { self.inner.context.wrap_borrowed_stream(stream.cast()) };
        Self { inner: Arc::new(Inner { stream, ..(*self.inner).clone() }) }
    }

    /// The same GPU and stream with these services.
    pub fn with_services(&self, services: &Services) -> Self {
        Self { inner: Arc::new(Inner { services: services.clone(), ..(*self.inner).clone() }) }
    }

    /// What kernels are made with.
    pub fn services(&self) -> &Services {
        &self.inner.services
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

    /// How much memory it has, and how much is left.
    ///
    /// # Errors
    /// An error of the driver's.
    pub fn memory(&self) -> Result<DeviceMemory, DeviceError> {
        let _current = self.enter()?;
        let (free, total) = cuda("cuMemGetInfo", self.inner.context.mem_get_info())?;
        Ok(DeviceMemory { free, total })
    }

    /// Makes this GPU the calling thread's current one until the value returned is dropped.
    ///
    /// # Errors
    /// An error of the driver's.
    pub(crate) fn enter(&self) -> Result<Entered, DeviceError> {
        Entered::new(&self.inner.context)
    }

    /// The same for calls that allocate, copy or wait, beside the captures of other threads.
    pub(crate) fn enter_relaxed(&self) -> Result<impl Sized, DeviceError> {
        let entered = self.enter()?;
        Ok((Relaxed::new(), entered))
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
