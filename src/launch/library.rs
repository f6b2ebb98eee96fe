//! From specs to loaded kernels, each variant once a process.

use super::{BindError, FunctionArgs, KernelArgs};
use crate::Error;
use crate::codegen::lower::DeviceFunction;
use crate::codegen::{Arch, Candidate, Generator, KernelSource, Value, Variant};
use crate::compile::{CompileJob, Cubin, PtxasReport, compile_all};
use crate::device::{CudaDevice, LoadedKernel};
use crate::tensor::place_name;
use crate::toolchain::Toolchain;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

/// A kernel wanted: its source, a value for every specialisation parameter, its device functions.
pub struct Request {
    source: &'static KernelSource,
    values: Vec<(&'static str, Value)>,
    functions: Vec<(&'static str, Arc<DeviceFunction>)>,
}

impl Request {
    /// A request for a kernel with nothing specialised yet.
    pub fn new(source: &'static KernelSource) -> Self {
        Request { source, values: Vec::new(), functions: Vec::new() }
    }

    /// Sets a specialisation parameter.
    pub fn value(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.values.push((name, value.into()));
        self
    }

    /// Puts a device function in a slot, when there is one.
    pub fn function(mut self, slot: &'static str, function: Option<&Arc<DeviceFunction>>) -> Self {
        self.functions.extend(function.map(|function| (slot, function.clone())));
        self
    }

    /// Every kernel of the tuning space that compiles without spills, the preferred first.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load_all(&self, device: &CudaDevice) -> Result<Vec<Kernel>, Error> {
        let (generator, candidates) = self.candidates(device.arch().parse()?)?;
        let variants =
            candidates.iter().map(|candidate| generator.render(candidate)).collect::<Result<Vec<_>, _>>()?;
        let kernels = load_variants(device, variants)?;
        Ok(kernels.into_iter().flatten().collect())
    }

    /// The candidates of this request on an architecture, rendered lazily by the generator returned with them.
    pub(crate) fn candidates(&self, arch: Arch) -> Result<(Generator, Vec<Candidate>), Error> {
        let generator = Generator::new(self.source)?;
        let mut spec = generator.spec(&self.values)?;
        for (slot, function) in &self.functions {
            spec = spec.with_function(slot, function.clone())?;
        }
        let accepted = generator.candidates(&Arc::new(spec), arch)?.accepted;
        Ok((generator, accepted))
    }
}

/// A loaded kernel with what was chosen and what ptxas reported, and the stream its launches go to.
#[derive(Clone)]
pub struct Kernel {
    compiled: Arc<Compiled>,
    device: CudaDevice,
}

/// What a kernel is on every stream.
struct Compiled {
    variant: Variant,
    report: PtxasReport,
    compile_time: Duration,
    loaded: LoadedKernel,
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

/// By GPU and fingerprint.
type Loaded = HashMap<(usize, String), Arc<Compiled>>;

/// Every kernel loaded so far: a second `Attention` of the same spec compiles nothing.
static LOADED: LazyLock<Mutex<Loaded>> = LazyLock::new(Mutex::default);

/// Loads a kernel for each request: the preferred candidate that compiles without spills. All compile in parallel.
///
/// # Errors
/// [`Error::Codegen`] for a spec the declaration does not allow, [`Error::Toolchain`] without NVRTC,
/// [`Error::Compile`] when the source does not compile, [`Error::Spills`] when every candidate spills.
pub fn load(device: &CudaDevice, requests: &[Request]) -> Result<Vec<Kernel>, Error> {
    let arch: Arch = device.arch().parse()?;
    let mut searches = requests
        .iter()
        .map(|request| {
            let (generator, candidates) = request.candidates(arch)?;
            Ok(Search { generator, candidates: candidates.into_iter(), found: None })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    while searches.iter().any(|search| search.found.is_none()) {
        compile_round(device, &mut searches)?;
    }
    Ok(searches.into_iter().filter_map(|search| search.found).collect())
}

/// One request on its way to a kernel.
struct Search {
    generator: Generator,
    candidates: std::vec::IntoIter<Candidate>,
    found: Option<Kernel>,
}

/// Tries the next candidate of every request that has no kernel yet.
fn compile_round(device: &CudaDevice, searches: &mut [Search]) -> Result<(), Error> {
    let mut waiting: Vec<&mut Search> = searches.iter_mut().filter(|search| search.found.is_none()).collect();
    let mut variants = Vec::with_capacity(waiting.len());
    for search in &mut waiting {
        let Some(candidate) = search.candidates.next() else {
            let kernel = search.generator.kernel().name.clone();
            return Err(Error::Spills { kernel, arch: device.arch().to_owned() });
        };
        variants.push(search.generator.render(&candidate)?);
    }
    for (search, kernel) in waiting.into_iter().zip(load_variants(device, variants)?) {
        search.found = kernel;
    }
    Ok(())
}

/// Loads variants, compiling those not loaded yet in parallel; `None` for those that spill.
fn load_variants(device: &CudaDevice, variants: Vec<Variant>) -> Result<Vec<Option<Kernel>>, Error> {
    // Two threads that want the same kernel compile it once: the second finds it loaded.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let key = |variant: &Variant| (device.info().ordinal, variant.fingerprint.clone());
    let unknown: Vec<&Variant> = {
        let loaded = lock();
        variants.iter().filter(|variant| !loaded.contains_key(&key(variant))).collect()
    };
    if !unknown.is_empty() {
        let toolchain = toolchain()?;
        device.check_toolchain(&toolchain)?;
        let jobs = unknown
            .iter()
            .map(|variant| CompileJob {
                name: variant.name.clone(),
                source: variant.source.clone(),
                arch: device.arch().to_owned(),
            })
            .collect();
        let cubins = compile_all(&toolchain, jobs, |_| {});
        for (variant, cubin) in unknown.into_iter().zip(cubins) {
            let cubin: Cubin = cubin?;
            if cubin.report.spills() {
                tracing::debug!(variant = variant.name, "spills: not a candidate");
                continue;
            }
            let loaded = device.load(&cubin)?;
            let Cubin { report, compile_time, .. } = cubin;
            let compiled = Compiled { variant: variant.clone(), report, compile_time, loaded };
            lock().insert(key(variant), Arc::new(compiled));
        }
    }
    let loaded = lock();
    let kernel = |compiled: &Arc<Compiled>| Kernel { compiled: compiled.clone(), device: device.clone() };
    Ok(variants.iter().map(|variant| loaded.get(&key(variant)).map(kernel)).collect())
}

fn lock() -> std::sync::MutexGuard<'static, Loaded> {
    // A panic elsewhere cannot leave the map half-written: insert is its only change.
    LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The process's toolchain, found (or installed, with a line on standard error) at the first compile.
fn toolchain() -> Result<Toolchain, Error> {
    static FOUND: Mutex<Option<Toolchain>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if found.is_none() {
        *found = Some(Toolchain::find()?);
    }
    Ok(found.clone().expect("set above"))
}
