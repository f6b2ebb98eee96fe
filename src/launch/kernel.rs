//! A kernel that can be launched.

use super::functions::functions_hash;
use super::store::Store;
use super::{BindError, Bound, BoxedTensor, FunctionArgs, KernelArgs};
use crate::Error;
use crate::codegen::{Candidate, Variant};
use crate::compile::{Cubin, PtxasReport};
use crate::device::{CudaDevice, LoadedKernel, TensorMap};
use crate::tensor::place_name;
use smallvec::SmallVec;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
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
    /// Blocks that the whole GPU runs at once, asked for at the first launch that wants to know.
    resident: OnceLock<u32>,
    /// The tensors of the last launch that the copy engine read, and their maps: a loop's tensors lie where they did before.
    mapped: Mutex<Mapped>,
    /// The same for grids of more blocks along y or z than CUDA launches, compiled at the first of them.
    folded: OnceLock<Arc<Compiled>>,
}

impl fmt::Debug for Kernel {
    /// Everything but the source, of which there is much.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Compiled { variant, report, loaded, .. } = &*self.compiled;
        f.debug_struct("Kernel")
            .field("name", &variant.name)
            .field("fingerprint", &variant.fingerprint)
            .field("report", report)
            .field("loaded", loaded)
            .field("gpu", &self.device.info().ordinal)
            .finish_non_exhaustive()
    }
}

/// Tensors with the maps made of them.
#[derive(Default)]
struct Mapped {
    tensors: SmallVec<[BoxedTensor; 4]>,
    maps: SmallVec<[TensorMap; 4]>,
}

impl Compiled {
    /// Loads a variant's cubin on the GPU.
    pub(super) fn load(device: &CudaDevice, variant: Variant, cubin: Cubin) -> Result<Self, Error> {
        let loaded = device.load(&cubin)?;
        let Cubin { report, compile_time, .. } = cubin;
        let functions = functions_hash(&variant.candidate.spec);
        Ok(Compiled {
            variant,
            report,
            compile_time,
            loaded,
            functions,
            resident: OnceLock::new(),
            mapped: Mutex::default(),
            folded: OnceLock::new(),
        })
    }
}

impl Compiled {
    /// The maps of tensors, those of the last launch where nothing has changed.
    fn maps(
        &self,
        kernel: &'static str,
        tensors: &SmallVec<[BoxedTensor; 4]>,
    ) -> Result<SmallVec<[TensorMap; 4]>, BindError> {
        if tensors.is_empty() {
            return Ok(SmallVec::new());
        }
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if mapped.tensors != *tensors {
            let encode = |boxed: &BoxedTensor| {
                TensorMap::encode(boxed).map_err(|reason| BindError::TensorMap {
                    kernel,
                    arg: boxed.arg,
                    reason,
                })
            };
            mapped.maps = tensors.iter().map(encode).collect::<Result<_, _>>()?;
            mapped.tensors = tensors.clone();
        }
        Ok(mapped.maps.clone())
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
    /// Checked is what the declaration says: dtypes, shapes, strides, alignment, requirements, devices, that the kernel is of this
    /// very declaration, and that what is written overlaps nothing else. What the kernel does with it is in its body, which is CUDA
    /// text, and nothing but its author says what that is:
    /// ```compile_fail,E0133
    /// # use tilewright::{Error, Tensor, kernels::score, launch::Kernel};
    /// # fn of(kernel: &Kernel, q_mean: &Tensor, k_mean: &Tensor, logits: &mut Tensor) -> Result<(), Error> {
    /// kernel.launch(&score::Args { q_mean, k_mean, logits, scale: 0.09 }, None)
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`BindError`] for arguments the declaration does not allow; a device error when the driver refuses.
    ///
    /// # Safety
    /// - For these arguments the body stays within the elements of its tensors. Scalars, and numbers in tensors that the body reads
    ///   as counts, indices or counters, are what the documentation of the kernel's `Args` asks for.
    /// - Until the launch has run, nothing on another stream writes what it reads, or uses what it writes.
    pub unsafe fn launch<A: KernelArgs>(
        &self,
        args: &A,
        functions: Option<&FunctionArgs>,
    ) -> Result<(), Error> {
        fn bytes<A: KernelArgs>(params: &A::Params) -> &[u8] {
            // SAFETY: `Params` is a `repr(C)` struct of plain numbers whose size and offsets are asserted; what would be padding is
            // a member of its own, so every byte of it is defined.
            unsafe {
                std::slice::from_raw_parts(std::ptr::from_ref(params).cast::<u8>(), size_of::<A::Params>())
            }
        }
        // SAFETY: the implementation of `KernelArgs` answers for what `bind` returns, the caller for the rest.
        unsafe { self.launch_bound(A::KERNEL, |candidate| args.bind(candidate), bytes::<A>, functions) }
    }

    /// The same of arguments that `bind` checks, whose struct has these bytes.
    ///
    /// # Safety
    /// As for [`launch`](Self::launch); `bind` and the bytes are as [`KernelArgs`] asks for.
    pub(super) unsafe fn launch_bound<P>(
        &self,
        kernel: &'static str,
        bind: impl FnOnce(&Candidate) -> Result<Bound<P>, BindError>,
        bytes: impl FnOnce(&P) -> &[u8],
        functions: Option<&FunctionArgs>,
    ) -> Result<(), Error> {
        let Compiled { variant, loaded, .. } = &*self.compiled;
        let device = &self.device;
        let _current = device.enter()?;
        let bound = bind(&variant.candidate)?;
        if functions.is_some_and(|functions| *functions.hash() != self.compiled.functions) {
            return Err(BindError::Functions { kernel }.into());
        }
        let here = device.info().ordinal;
        if let Some((arg, ordinal)) = bound.on.filter(|(_, ordinal)| *ordinal != here) {
            let (found, needed) = (place_name(Some(ordinal)), place_name(Some(here)));
            return Err(BindError::Place { kernel, arg, found, needed }.into());
        }
        if let Some(ordinal) = functions.and_then(|functions| functions.elsewhere(device)) {
            let (found, needed) = (place_name(Some(ordinal)), place_name(Some(here)));
            let arg = "the captures of its functions";
            return Err(BindError::Place { kernel, arg, found, needed }.into());
        }
        let budget = &variant.candidate.budget;
        let maps = self.compiled.maps(kernel, &bound.tensor_maps)?;
        let queue = if bound.queue { device.tile_queue()?.to_ne_bytes() } else { [0; 8] };
        let mut all: SmallVec<[&[u8]; 4]> = SmallVec::from_slice(&[bytes(&bound.params)]);
        all.extend(functions.map(FunctionArgs::bytes));
        if !maps.is_empty() {
            all.push(TensorMap::bytes(&maps));
        }
        if bound.queue {
            all.push(&queue);
        }
        let grid = if bound.persistent { self.blocks_for(bound.grid)? } else { bound.grid };
        let loaded = if bound.folded { &self.folded()?.loaded } else { loaded };
        // SAFETY: the tensors are on this device with the extents in `Params`; their storage
        // is freed on the same stream, after this launch. The caller answers for the body.
        unsafe {
            loaded.launch(device, grid, budget.threads as u32, budget.smem_bytes as u32, &all)?;
        }
        functions.map_or(Ok(()), |functions| functions.launched(device))?;
        Ok(())
    }

    /// The kernel for grids that are folded. The divisions may cost it a spilled register: it is taken as it is.
    fn folded(&self) -> Result<&Compiled, Error> {
        let Kernel { compiled, device } = self;
        if let Some(folded) = compiled.folded.get() {
            return Ok(folded);
        }
        let Some(variant) = compiled.variant.folded() else {
            unreachable!("persistent grids are not folded")
        };
        let cubins = Store::of(device)?.cubins(device.arch(), &[&variant], |_| {});
        let Some(cubin) = cubins.into_iter().next() else {
            unreachable!("there is a cubin for each variant")
        };
        let folded = Arc::new(Compiled::load(device, variant, cubin?)?);
        Ok(compiled.folded.get_or_init(|| folded))
    }

    /// As many blocks as run at once, or as there are tiles.
    fn blocks_for(&self, tiles: [u32; 3]) -> Result<[u32; 3], Error> {
        let resident = match self.compiled.resident.get() {
            Some(&resident) => resident,
            None => {
                let all = self.blocks_per_sm()?.saturating_mul(self.device.info().sm_count as u32);
                *self.compiled.resident.get_or_init(|| all.max(1))
            }
        };
        // The binder has checked that the product fits 32 bits.
        Ok([tiles.iter().product::<u32>().min(resident), 1, 1])
    }
}
