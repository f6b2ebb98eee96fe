//! A kernel on a GPU, ready to launch.

use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use cudarc::driver::sys::{self, CUdevice_attribute_enum as DeviceAttribute, CUfunction_attribute_enum};
use cudarc::driver::{CudaContext, DriverError, result};

use super::current::{Entered, Relaxed};
use super::error::cuda;
use super::{CudaDevice, DeviceError};
use crate::compile::Cubin;

/// The grid's limits, the same for every GPU that is supported.
const GRID_LIMITS: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// A kernel in a GPU's memory. Cloning is cheap; it is unloaded with its last clone.
#[derive(Clone)]
pub struct LoadedKernel {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    context: Arc<CudaContext>,
    module: sys::CUmodule,
    function: sys::CUfunction,
    /// The size of every parameter, as the cubin declares it.
    parameters: Vec<usize>,
    smem_limit: u32,
    thread_limit: u32,
}

// SAFETY: the driver's handles may be used from any thread in which the context is current, and every use makes it so.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for Inner {}

impl LoadedKernel {
    pub(super) fn new(device: &CudaDevice, cubin: &Cubin) -> Result<Self, DeviceError> {
        let context = device.context().clone();
        let (_current, _relaxed) = (Entered::new(&context)?, Relaxed::new());
        // SAFETY: the bytes are a whole cubin, which says its own length; the driver copies what it keeps.
        let module = unsafe { result::module::load_data(cubin.bytes().as_ptr().cast()) };
        let mut inner = Inner {
            name: cubin.name.clone(),
            context,
            module: cuda("cuModuleLoadData", module)?,
            function: std::ptr::null_mut(),
            parameters: Vec::new(),
            smem_limit: 0,
            thread_limit: 0,
        };
        // A name with a NUL byte does not get through the compiler.
        let name = CString::new(cubin.name.as_str()).unwrap_or_default();
        // SAFETY: the module is loaded.
        inner.function =
            cuda("cuModuleGetFunction", unsafe { result::module::get_function(inner.module, name) })?;
        inner.parameters = cuda("cuFuncGetParamInfo", parameters(inner.function))?;
        inner.thread_limit =
            inner.attribute(CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        inner.smem_limit = inner.raise_smem_limit()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The most dynamic shared memory a launch can ask for, in bytes.
    pub fn smem_limit(&self) -> u32 {
        self.inner.smem_limit
    }

    /// How many blocks of `threads` threads and `smem_bytes` bytes of dynamic shared memory a multiprocessor runs at
    /// the same time.
    ///
    /// # Errors
    /// An error of the driver's.
    pub fn blocks_per_sm(&self, threads: u32, smem_bytes: u32) -> Result<u32, DeviceError> {
        let inner = &*self.inner;
        let _current = Entered::new(&inner.context)?;
        let mut blocks = 0;
        // SAFETY: the function is loaded, and the pointer is valid for a write.
        let counted = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                inner.function,
                threads.try_into().unwrap_or(i32::MAX),
                smem_bytes as usize,
            )
        };
        cuda("cuOccupancyMaxActiveBlocksPerMultiprocessor", counted.result())?;
        Ok(blocks.try_into().unwrap_or_default())
    }

    /// Puts a launch on the device's stream: `grid` blocks of `threads` threads, each with `smem_bytes` bytes of dynamic shared
    /// memory. A parameter is the bytes of one argument, a whole struct as a rule. Nothing is launched when the grid is empty.
    ///
    /// # Errors
    /// More blocks, threads or shared memory than there can be, parameters of other sizes than the kernel declares,
    /// or an error of the driver's. What the kernel itself does wrong shows at the next synchronisation.
    ///
    /// # Safety
    /// `device` is the one that the kernel was loaded on, or that on another stream. The parameters hold what the kernel expects: pointers to memory of
    /// the device, alive until the kernel has run, large enough for the sizes in them, and not used on another stream meanwhile.
    pub unsafe fn launch(
        &self,
        device: &CudaDevice,
        grid: [u32; 3],
        threads: u32,
        smem_bytes: u32,
        params: &[&[u8]],
    ) -> Result<(), DeviceError> {
        let inner = &*self.inner;
        inner.check_launch(grid, threads, smem_bytes, params)?;
        if grid.contains(&0) {
            return Ok(());
        }
        let _current = Entered::new(&inner.context)?;
        let mut pointers: SmallVec<[*mut c_void; 4]> =
            params.iter().map(|param| param.as_ptr().cast_mut().cast()).collect();
        // SAFETY: the function is loaded, the parameters have the sizes it declares and are copied by the call; the
        // caller answers for what they hold.
        let launched = unsafe {
            result::launch_kernel(
                inner.function,
                grid.into(),
                (threads, 1, 1),
                smem_bytes,
                device.stream().cu_stream(),
                &mut pointers,
            )
        };
        cuda("cuLaunchKernel", launched)
    }
}

impl Inner {
    fn check_launch(
        &self,
        grid: [u32; 3],
        threads: u32,
        smem_bytes: u32,
        params: &[&[u8]],
    ) -> Result<(), DeviceError> {
        let asked = [
            ("blocks along x", grid[0], GRID_LIMITS[0]),
            ("blocks along y", grid[1], GRID_LIMITS[1]),
            ("blocks along z", grid[2], GRID_LIMITS[2]),
            ("threads a block", threads, self.thread_limit),
            ("bytes of dynamic shared memory", smem_bytes, self.smem_limit),
        ];
        for (what, found, limit) in asked {
            if found > limit {
                let (found, limit) = (found.into(), limit.into());
                return Err(DeviceError::TooMuch { kernel: self.name.clone(), what, found, limit });
            }
        }
        if !params.iter().map(|param| param.len()).eq(self.parameters.iter().copied()) {
            return Err(DeviceError::Parameters {
                kernel: self.name.clone(),
                found: params.iter().map(|param| param.len()).collect(),
                needed: self.parameters.clone(),
            });
        }
        Ok(())
    }

    /// Lets launches ask for all the shared memory a block can have, and returns how much that is. Without this the
    /// limit is 48 KB; what a launch really asks for decides how many blocks fit, so the high limit costs nothing.
    fn raise_smem_limit(&self) -> Result<u32, DeviceError> {
        let static_bytes = self.attribute(CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let optin = DeviceAttribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let optin = cuda("cuDeviceGetAttribute", self.context.attribute(optin))?;
        let limit = optin.saturating_sub(static_bytes.try_into().unwrap_or(i32::MAX)).max(0);
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is loaded.
        let set = unsafe { result::function::set_function_attribute(self.function, attribute, limit) };
        cuda("cuFuncSetAttribute", set)?;
        Ok(limit.try_into().unwrap_or_default())
    }

    fn attribute(&self, attribute: CUfunction_attribute_enum) -> Result<u32, DeviceError> {
        // SAFETY: the function is loaded.
        let value = unsafe { result::function::get_function_attribute(self.function, attribute) };
        Ok(cuda("cuFuncGetAttribute", value)?.try_into().unwrap_or_default())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // An error here has nobody to go to.
        if let (Ok(_current), _relaxed) = (Entered::new(&self.context), Relaxed::new()) {
            // SAFETY: the module is loaded, and this is its last owner.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

impl fmt::Debug for LoadedKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedKernel")
            .field("name", &self.inner.name)
            .field("parameters", &self.inner.parameters)
            .field("smem_limit", &self.inner.smem_limit)
            .finish_non_exhaustive()
    }
}

/// The sizes of a function's parameters. The driver tells them one by one and ends with an error.
fn parameters(function: sys::CUfunction) -> Result<Vec<usize>, DriverError> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded, and both pointers are valid for a write.
        match unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) }.result() {
            Ok(()) => sizes.push(size),
            Err(DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE)) => return Ok(sizes),
            Err(error) => return Err(error),
        }
    }
}
