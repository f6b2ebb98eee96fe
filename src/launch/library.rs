//! From specs to loaded kernels, each variant once a process.

use super::kernel::{Compiled, Kernel};
use super::store::Store;
use crate::Error;
use crate::cache::Origin;
use crate::codegen::lower::DeviceFunction;
use crate::codegen::{Arch, Candidate, Generator, KernelSource, KernelSpec, Value, Variant};
use crate::compile::{Cubin, PtxasReport};
use crate::device::CudaDevice;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex};

/// A kernel wanted: its source, a value for every specialisation parameter, its device functions.
pub struct Request {
    source: &'static KernelSource,
    values: Vec<(&'static str, Value)>,
    functions: Vec<(&'static str, Arc<DeviceFunction>)>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions: Vec<_> =
            self.functions.iter().map(|(slot, function)| (slot, function.name())).collect();
        f.debug_struct("Request")
            .field("kernel", &self.source.name)
            .field("values", &self.values)
            .field("functions", &functions)
            .finish()
    }
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
        let kernels = load_variants(device, &variants.iter().collect::<Vec<_>>(), |_| {})?;
        Ok(kernels.into_iter().flatten().collect())
    }

    /// The candidates of this request on an architecture, rendered lazily by the generator returned with them.
    fn candidates(&self, arch: Arch) -> Result<(Generator, Vec<Candidate>), Error> {
        let generator = Generator::new(self.source)?;
        let accepted = generator.candidates(&self.spec(&generator)?, arch)?.accepted;
        Ok((generator, accepted))
    }

    /// The kernel's files.
    pub(super) fn source(&self) -> &'static KernelSource {
        self.source
    }

    /// What is computed.
    pub(super) fn spec(&self, generator: &Generator) -> Result<Arc<KernelSpec>, Error> {
        let mut spec = generator.spec(&self.values)?;
        for (slot, function) in &self.functions {
            spec = spec.with_function(slot, function.clone())?;
        }
        Ok(Arc::new(spec))
    }
}

/// The GPU, its services, the source's fingerprint, and that of the declaration: two may have one source and differ in what a launch
/// must hold to, and each cache is to hold what its services compiled.
type Identity = (usize, u64, String, String);

type Loaded = HashMap<Identity, Arc<Compiled>>;

fn identity(device: &CudaDevice, variant: &Variant) -> Identity {
    let declaration = variant.candidate.spec.declaration().to_owned();
    (device.info().ordinal, device.services().number(), variant.fingerprint.clone(), declaration)
}

/// Every kernel loaded so far: a second `Attention` of the same spec compiles nothing. None is ever unloaded.
///
/// For a kernel to go with the last that may launch it, three things would have to hold, and the driver promises none of them:
/// - No graph launches it. A graph has the function's handle, and is not said to keep the module: each captured launch would have to give the kernel to
///   the graph, as [`FunctionArgs`](super::FunctionArgs) do with slices that they hold (`CudaDevice::keep_in_graph`).
/// - No launch of it is still to run. On streams of callers', which may be gone by then, an event after each launch would tell.
/// - Nobody unloads it on the thread that the driver drops a graph's things on, or beside a capture that unloading would break.
///
/// That is two calls of the driver at every launch, to free what a cubin takes. The services of the environment last as long as the
/// process anyway; whoever makes others over and over keeps the kernels of each, which [`Services`](crate::services::Services) says.
static LOADED: LazyLock<Mutex<Loaded>> = LazyLock::new(Mutex::default);

/// Loads a kernel for each request: the preferred candidate that compiles without spills. All compile in parallel, and what the device's
/// cache or the program holds is not compiled again. Nothing is timed: the policy of the device's services is for attentions.
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
    let kernels = load_variants(device, &variants.iter().collect::<Vec<_>>(), |_| {})?;
    for (search, kernel) in waiting.into_iter().zip(kernels) {
        match kernel {
            Ok(kernel) => search.found = Some(kernel),
            Err(Unusable::Spills(reason)) => tracing::debug!(reason, "the next candidate"),
            Err(Unusable::Failed(error)) => return Err(*error),
        }
    }
    Ok(())
}

/// Loads variants: those not loaded yet from the cache, or compiled in parallel, `compiled` being told of each (whether
/// it was). The reason stands in for one that spills.
pub(super) fn load_variants(
    device: &CudaDevice,
    variants: &[&Variant],
    compiled: impl Fn(bool) + Sync + Send,
) -> Result<Vec<Result<Kernel, Unusable>>, Error> {
    // Two threads that want the same kernel compile it once: the second finds it loaded.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let key = |variant: &Variant| identity(device, variant);
    let unknown: Vec<&Variant> = {
        let loaded = lock();
        variants.iter().copied().filter(|variant| !loaded.contains_key(&key(variant))).collect()
    };
    let done = |origin| compiled(origin == Origin::Compiled);
    let cubins = Store::of(device)?.cubins(device.arch(), &unknown, done);
    let mut failed = HashMap::new();
    for (variant, cubin) in unknown.into_iter().zip(cubins) {
        let loaded = match cubin {
            Ok(cubin) => load_cubin(device, variant, cubin)?,
            Err(error) => Err(Unusable::of(error)?),
        };
        if let Err(why) = loaded {
            failed.insert(key(variant), why);
        }
    }
    let loaded = lock();
    Ok(variants
        .iter()
        .map(|variant| match loaded.get(&key(variant)) {
            Some(compiled) => Ok(Kernel::new(compiled.clone(), device)),
            None => Err(failed
                .remove(&key(variant))
                .unwrap_or_else(|| Unusable::Spills("it is listed twice".into()))),
        })
        .collect())
}

/// Why a candidate is none after all.
#[derive(Debug)]
pub(super) enum Unusable {
    /// It spills registers: another schedule is faster.
    Spills(String),
    /// It does not compile or load; others may.
    Failed(Box<Error>),
}

impl Unusable {
    /// What went wrong with one candidate alone; the outer error is for what goes wrong with all of them.
    fn of(error: Error) -> Result<Self, Error> {
        match error {
            Error::Compile(_) | Error::Device(_) => Ok(Unusable::Failed(error.into())),
            other => Err(other),
        }
    }

    /// The reason, as a record keeps it.
    pub(super) fn reason(&self) -> String {
        match self {
            Unusable::Spills(reason) => reason.clone(),
            Unusable::Failed(error) => error.to_string(),
        }
    }
}

/// Loads a variant from a cubin that is at hand.
pub(super) fn load_cubin(
    device: &CudaDevice,
    variant: &Variant,
    cubin: Cubin,
) -> Result<Result<Kernel, Unusable>, Error> {
    if cubin.report.spills() {
        return Ok(Err(Unusable::Spills(spills(&cubin.report))));
    }
    let compiled = match Compiled::load(device, variant.clone(), cubin) {
        Ok(compiled) => Arc::new(compiled),
        Err(error) => return Ok(Err(Unusable::of(error)?)),
    };
    lock().insert(identity(device, variant), compiled.clone());
    Ok(Ok(Kernel::new(compiled, device)))
}

fn spills(report: &PtxasReport) -> String {
    format!("it spills {} bytes of registers", report.spill_store_bytes.max(report.spill_load_bytes))
}

fn lock() -> std::sync::MutexGuard<'static, Loaded> {
    // A panic elsewhere cannot leave the map half-written: insert is its only change.
    LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
