//! A kernel that can be launched.

use super::functions::functions_hash;
use super::{BindError, FunctionArgs, KernelArgs};
use crate::Error;
use crate::codegen::Variant;
use crate::compile::{Cubin, PtxasReport};
use crate::device::{CudaDevice, LoadedKernel};
use crate::tensor::place_name;
use std::sync::Arc;
use std::time::Duration;

/// A loaded kernel with what was chosen and what ptxas reported, and the stream its launches go to.
#[derive(Clone)]
pub struct Kernel {
    compiled: Arc<Compiled>,
    device: CudaDevice,
}

/// What a kernel is on every stream.
pub(super) struct Compiled {
    variant: Variant,
    report: PtxasReport,
    compile_time: Duration,
    loaded: LoadedKernel,
    functions: blake3::Hash,
}

impl Compiled {
    /// Loads a variant's cubin on the GPU.
    pub(super) fn load(device: &CudaDevice, variant: Variant, cubin: Cubin) -> Result<Self, Error> {
        let loaded = device.load(&cubin)?;
        let Cubin { report, compile_time, .. } = cubin;
        let functions = functions_hash(&variant.candidate.spec);
        Ok(Compiled { variant, report, compile_time, loaded, functions })
    }
}

impl Kernel {
    /// The variant: name, fingerprint, source, candidate.
    pub fn variant(&self) -> &Variant {
        &self.compiled.variant
    }

    /// Registers, spills and shared memory as ptxas reported them.
    pub fn report(&self) -> &PtxasReport {
        &self.compiled.report
    }

    /// How long NVRTC took.
    pub fn compile_time(&self) -> Duration {
        self.compiled.compile_time
    }

    pub(super) fn new(compiled: Arc<Compiled>, device: &CudaDevice) -> Self {
        Kernel { compiled, device: device.clone() }
    }

    /// The same kernel with its launches on another stream of the same GPU.
    pub(crate) fn on(&self, device: &CudaDevice) -> Self {
        Kernel { compiled: self.compiled.clone(), device: device.clone() }
    }

    /// Blocks that fit a multiprocessor at once.
    ///
    /// # Errors
    /// A driver error.
    pub fn blocks_per_sm(&self) -> Result<u32, Error> {
        let budget = &self.compiled.variant.candidate.budget;
        Ok(self.compiled.loaded.blocks_per_sm(budget.threads as u32, budget.smem_bytes as u32)?)
    }

    /// Checks the arguments and puts the launch on the device's stream.
    ///
    /// # Errors
    /// [`BindError`] for arguments the declaration does not allow; a device error when the driver refuses.
    pub fn launch<A: KernelArgs>(&self, args: &A, functions: Option<&FunctionArgs>) -> Result<(), Error> {
        let Compiled { variant, loaded, .. } = &*self.compiled;
        let device = &self.device;
        let bound = args.bind(&variant.candidate)?;
        if functions.is_some_and(|functions| *functions.hash() != self.compiled.functions) {
            return Err(BindError::Functions { kernel: A::KERNEL }.into());
        }
        let here = device.info().ordinal;
        if let Some((arg, ordinal)) = bound.on.filter(|(_, ordinal)| *ordinal != here) {
            let (found, needed) = (place_name(Some(ordinal)), place_name(Some(here)));
            return Err(BindError::Place { kernel: A::KERNEL, arg, found, needed }.into());
        }
        let budget = &variant.candidate.budget;
        // SAFETY: `Params` is a `repr(C)` struct of plain numbers whose size and offsets are asserted; what would be padding is a
        // member of its own, so every byte of it is defined.
        let params = unsafe {
            std::slice::from_raw_parts((&raw const bound.params).cast::<u8>(), size_of::<A::Params>())
        };
        let with_functions = [params, functions.map_or(&[][..], FunctionArgs::bytes)];
        let params = if functions.is_some() { &with_functions[..] } else { &with_functions[..1] };
        // SAFETY: the tensors are on this device with the extents in `Params`; their storage
        // is freed on the same stream, after this launch.
        unsafe {
            loaded.launch(
                device.stream(),
                bound.grid,
                budget.threads as u32,
                budget.smem_bytes as u32,
                params,
            )?;
        }
        Ok(())
    }
}
