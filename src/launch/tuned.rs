//! The kernel for the sizes at hand: from the tuning record, else timed on the call's own tensors, else the model's pick.

use super::declared::{bucket, extents};
use super::trial::Call;
use super::{BindError, FunctionArgs, Kernel, KernelArgs, Probe, Request, TensorArg, Verdict};
use crate::Error;
use crate::codegen::{Arch, Candidate, Family, Generator, Reason, Rejection, Variant};
use crate::device::{CudaDevice, Device};
use crate::tune::{Bucket, DeviceKey, Policy, TuneKey, TuneRecord, spec_fingerprint};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Candidates that are compiled and timed at most; the model leaves out the rest. Sixteen cores compile as many at once.
const MOST_COMPILED: usize = 16;

/// A kernel with its tuning space: for each kind of sizes the schedule that is fastest on the GPU at hand.
///
/// The first launch of sizes chooses: by the tuning record in the cache; else, under [`Policy::Tune`], every candidate is checked against
/// the first one and by the kernel's `check.rs`, and timed, on the launch's own tensors. The choice is kept for this process and, in a
/// record, for later ones. Clones share it.
#[derive(Clone)]
pub struct Tuned {
    pub(super) device: CudaDevice,
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for Tuned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tuned")
            .field("kernel", &self.shared.name)
            .field("variants", &self.shared.variants.len())
            .field("policy", &self.shared.policy)
            .field("gpu", &self.device.info().ordinal)
            .finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    pub(super) name: String,
    spec: String,
    generator: Generator,
    /// Every candidate that fits, in the declaration's order.
    variants: Vec<Variant>,
    pruned: Vec<Rejection>,
    /// Whether the kernel's folder has a check.rs.
    pub(super) has_check: bool,
    pub(super) policy: Policy,
    chosen: RwLock<Vec<Chosen>>,
    /// The records this process has read or made.
    records: Mutex<Vec<TuneRecord>>,
    /// Kernels for tensors that the chosen one's body cannot take.
    stand_ins: Mutex<Vec<Kernel>>,
}

/// The kernel for sizes.
struct Chosen {
    bucket: Bucket,
    kernel: Kernel,
    /// What the model left out.
    left_out: Vec<Rejection>,
}

/// The candidates worth compiling, the model's pick first, and the others.
struct Ranked<'a> {
    variants: Vec<&'a Variant>,
    left_out: Vec<Rejection>,
}

/// What was chosen for a kernel, and why.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Choice {
    /// The timing of every candidate; absent when there was only one, or nothing was timed.
    pub record: Option<TuneRecord>,
    /// Schedules that were left out before anything was compiled.
    pub pruned: Vec<Rejection>,
    /// The variant in use.
    pub variant: Variant,
}

impl Tuned {
    /// The tuning space of a request on the device, with the policy of the device's services. Nothing is compiled yet.
    ///
    /// # Errors
    /// [`Error::Codegen`] for a spec the declaration does not allow, or that no schedule of it fits this GPU; [`Error::Policy`].
    pub fn new(device: &CudaDevice, request: &Request) -> Result<Self, Error> {
        Self::with_policy(device, request, device.services().policy()?)
    }

    /// Launches the schedule that is fastest for tensors of about these sizes.
    ///
    /// # Errors
    /// As [`Kernel::launch`]; [`Error::Tune`], [`Error::Spills`], [`Error::Toolchain`] or [`Error::CacheOnly`] where none can be chosen.
    ///
    /// # Safety
    /// As for [`Kernel::launch`], for every schedule of the kernel. The launch that chooses launches each of them many times, over tensors
    /// that hold what they held before.
    pub unsafe fn launch<A: KernelArgs>(
        &self,
        args: &A,
        functions: Option<&FunctionArgs>,
    ) -> Result<(), Error> {
        // SAFETY: the caller's.
        unsafe { self.launch_in(bucket(&args.tensors()), args, functions) }
    }

    /// As [`new`](Self::new), with a policy of one's own.
    pub(crate) fn with_policy(device: &CudaDevice, request: &Request, policy: Policy) -> Result<Self, Error> {
        let arch: Arch = device.arch().parse()?;
        let generator = Generator::new(request.source())?;
        let spec = request.spec(&generator)?;
        let candidates = generator.candidates_within(&spec, arch, &device.info().machine().limits)?;
        let variants = candidates
            .accepted
            .iter()
            .map(|candidate| generator.render(candidate))
            .collect::<Result<Vec<_>, _>>()?;
        let shared = Shared {
            name: generator.kernel().name.clone(),
            spec: spec_fingerprint(request.source(), &spec),
            generator,
            variants,
            pruned: candidates.rejected,
            has_check: request.source().has_check,
            policy,
            chosen: RwLock::default(),
            records: Mutex::default(),
            stand_ins: Mutex::default(),
        };
        Ok(Tuned { device: device.clone(), shared: Arc::new(shared) })
    }

    /// The same kernel on another stream of the same GPU.
    pub fn on(&self, device: &CudaDevice) -> Self {
        Tuned { device: device.clone(), shared: self.shared.clone() }
    }

    /// The spec of every candidate.
    pub fn spec(&self) -> &crate::codegen::KernelSpec {
        &self.shared.variants[0].candidate.spec
    }

    /// Whether a launch of these dimensions is worth making an optional argument for, as the body that would run says.
    pub(crate) fn is_worth(&self, arg: &str, dims: &[(&str, usize)]) -> bool {
        let Ok(arch) = self.device.arch().parse::<Arch>() else { return false };
        let dims: Vec<_> =
            dims.iter().map(|&(name, extent)| (name, i64::try_from(extent).unwrap_or(i64::MAX))).collect();
        self.shared.generator.is_worth(arg, self.spec(), arch, &self.device.info().machine(), &dims)
    }

    /// Whether a kernel is chosen for sizes.
    pub(crate) fn knows(&self, bucket: Bucket) -> bool {
        let chosen = self.shared.chosen.read().unwrap_or_else(PoisonError::into_inner);
        chosen.iter().any(|chosen| chosen.bucket == bucket)
    }

    /// The kernel chosen last, if any was.
    pub fn current(&self) -> Option<Kernel> {
        let chosen = self.shared.chosen.read().unwrap_or_else(PoisonError::into_inner);
        chosen.last().map(|chosen| chosen.kernel.on(&self.device))
    }

    /// What was chosen last, and why.
    pub fn choice(&self) -> Option<Choice> {
        let chosen = self.shared.chosen.read().unwrap_or_else(PoisonError::into_inner);
        chosen.last().map(|chosen| self.explained(chosen))
    }

    /// What was chosen for sizes, and why.
    pub(crate) fn choice_for(&self, bucket: Bucket) -> Option<Choice> {
        let chosen = self.shared.chosen.read().unwrap_or_else(PoisonError::into_inner);
        chosen.iter().find(|chosen| chosen.bucket == bucket).map(|chosen| self.explained(chosen))
    }

    fn explained(&self, Chosen { bucket, kernel, left_out }: &Chosen) -> Choice {
        let (shared, key) = (&*self.shared, self.key(*bucket));
        let records = shared.records.lock().unwrap_or_else(PoisonError::into_inner);
        let record = records.iter().find(|record| *record.key() == key).cloned();
        let pruned = shared.pruned.iter().chain(left_out).cloned().collect();
        Choice { record, pruned, variant: kernel.variant().clone() }
    }

    /// Launches the kernel for the sizes; the first time it is chosen, on the call's own tensors. A launch that the driver refuses falls
    /// back to the next best candidate and corrects the record.
    ///
    /// # Errors
    /// As [`Kernel::launch`], and what choosing a kernel fails for.
    ///
    /// # Safety
    /// As for [`Kernel::launch`]. Where a kernel is chosen, every candidate is launched many times, each time over what `args` held
    /// before (but for what is only written).
    pub(crate) unsafe fn launch_in<A: KernelArgs>(
        &self,
        bucket: Bucket,
        args: &A,
        functions: Option<&FunctionArgs>,
    ) -> Result<(), Error> {
        // SAFETY: the caller's.
        let launch = |kernel: &Kernel| unsafe { kernel.launch(args, functions) };
        let check =
            |kernel: &Kernel| args.check(&Probe::new(Device::Cuda(self.device.clone()), kernel, functions));
        self.run(bucket, &|| args.tensors(), &launch, Some(&check))
    }

    pub(super) fn run<'a>(
        &self,
        bucket: Bucket,
        tensors: &dyn Fn() -> Vec<TensorArg<'a>>,
        launch: &dyn Fn(&Kernel) -> Result<(), Error>,
        check: Option<&dyn Fn(&Kernel) -> Verdict>,
    ) -> Result<(), Error> {
        let kernel = match self.chosen(bucket) {
            Some(kernel) => kernel,
            None => self.first(bucket, &Call { tensors: &tensors(), launch, check })?,
        };
        match launch(&kernel) {
            Err(Error::Device(error)) if error.is_refused_launch() => {
                let Ranked { variants, left_out } = self.ranked(&[]);
                let next = self.demote(bucket, &variants, &kernel, &error.to_string())?.ok_or(error)?;
                self.keep(bucket, &next, left_out);
                launch(&next)
            }
            // These tensors are none for this body, as they lie in memory or for their number of blocks: others are, so
            // what is chosen stays chosen.
            Err(
                error @ Error::Bind(
                    BindError::TensorMap { .. } | BindError::Grid { .. } | BindError::Arithmetic { .. },
                ),
            ) => {
                let family = kernel.variant().candidate.schedule.family;
                match self.stand_in(family)? {
                    Some(stand_in) => launch(&stand_in),
                    None => Err(error),
                }
            }
            launched => launched,
        }
    }

    /// The kernel for sizes that none is chosen for yet.
    fn first(&self, bucket: Bucket, call: &Call<'_>) -> Result<Kernel, Error> {
        let Ranked { variants, left_out } = self.ranked(&extents(call.tensors));
        // Nothing can be timed while a graph is captured; what stands in for it is not kept.
        if self.shared.policy == Policy::Tune && self.device.is_capturing()? {
            return self.first_valid(&variants);
        }
        let kernel = self.choose(bucket, &variants, call)?;
        self.keep(bucket, &kernel, left_out);
        Ok(kernel)
    }

    /// A kernel of another family's body; none where there is only one. It is made once.
    fn stand_in(&self, family: Family) -> Result<Option<Kernel>, Error> {
        let of_another = |kernel: &Kernel| kernel.variant().candidate.schedule.family != family;
        let mut known = self.shared.stand_ins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = known.iter().find(|kernel| of_another(kernel)) {
            return Ok(Some(kernel.on(&self.device)));
        }
        let mut ranked = self.ranked(&[]).variants;
        ranked.retain(|variant| variant.candidate.schedule.family != family);
        if ranked.is_empty() {
            return Ok(None);
        }
        let kernel = self.first_valid(&ranked)?;
        known.push(kernel.clone());
        Ok(Some(kernel))
    }

    /// The kernel chosen for sizes.
    pub(crate) fn chosen(&self, bucket: Bucket) -> Option<Kernel> {
        let chosen = self.shared.chosen.read().unwrap_or_else(PoisonError::into_inner);
        let known = chosen.iter().find(|chosen| chosen.bucket == bucket);
        known.map(|chosen| chosen.kernel.on(&self.device))
    }

    fn keep(&self, bucket: Bucket, kernel: &Kernel, left_out: Vec<Rejection>) {
        let mut chosen = self.shared.chosen.write().unwrap_or_else(PoisonError::into_inner);
        chosen.retain(|chosen| chosen.bucket != bucket);
        chosen.push(Chosen { bucket, kernel: kernel.clone(), left_out });
    }

    /// The candidates for a launch of these dimensions.
    fn ranked(&self, dims: &[(&str, i64)]) -> Ranked<'_> {
        let shared = &*self.shared;
        let candidates: Vec<&Candidate> = shared.variants.iter().map(|variant| &variant.candidate).collect();
        let order = shared.generator.rank(&candidates, &self.device.info().machine(), dims);
        let ranked: Vec<&Variant> = order.into_iter().map(|place| &shared.variants[place]).collect();
        let compiled = MOST_COMPILED.min(ranked.len());
        let left_out = ranked[compiled..].iter().enumerate().map(|(i, variant)| Rejection {
            schedule: variant.candidate.schedule.clone(),
            reason: Reason::Ranked { place: compiled + i + 1, compiled },
        });
        Ranked { variants: ranked[..compiled].to_vec(), left_out: left_out.collect() }
    }

    pub(super) fn key(&self, bucket: Bucket) -> TuneKey {
        let info = self.device.info();
        TuneKey {
            spec: self.shared.spec.clone(),
            device: DeviceKey::new(info, info.memory_clock_khz),
            bucket,
        }
    }

    pub(super) fn remember(&self, record: Option<TuneRecord>) {
        let mut records = self.shared.records.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = record {
            records.retain(|known| known.key() != record.key());
            records.push(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceError;
    use crate::kernels::pool;
    use crate::tune::Workload;
    use crate::{DType, Tensor};

    /// The driver refuses the recorded winner: the next best runs, and the record is corrected for later processes.
    #[test]
    #[ignore = "needs a GPU, NVRTC and a TILEWRIGHT_CACHE of its own: docs/testing.md"]
    fn a_refused_launch_falls_back_to_the_next_and_corrects_the_record() {
        let device = Device::cuda(0).expect("a GPU");
        // It corrupts a record on purpose.
        std::env::var_os(crate::cache::CACHE_VARIABLE).expect("a TILEWRIGHT_CACHE of its own");
        let cuda = device.as_cuda().unwrap();
        let x = Tensor::zeros_on(&device, DType::Bf16, &[1, 3, 5000, 64]).unwrap();
        let mut q_mean = Tensor::zeros_on(&device, DType::F32, &[1, 3, 40, 64]).unwrap();
        let mut k_mean = Tensor::zeros_on(&device, DType::F32, &[1, 3, 79, 64]).unwrap();
        let workload = Workload { batch: 1, heads: 3, seq_q: 5000, seq_kv: 5000, density: 0.5 };
        let bucket = Bucket::of(&workload);
        let new = || {
            let request = Request::new(&pool::SOURCE).value("T", DType::Bf16).value("D", 64);
            let request = request.value("BLOCK_Q", 128).value("BLOCK_KV", 64);
            Tuned::with_policy(cuda, &request, Policy::Tune).unwrap()
        };
        let mut run = |tuned: &Tuned, refused: Option<&str>| {
            let (q_mean, k_mean) = (&mut q_mean, &mut k_mean);
            let args = pool::Args { q: &x, k: &x, q_mean, k_mean, finished: None, k_fine: None };
            let launch = |kernel: &Kernel| {
                if refused == Some(kernel.variant().name.as_str()) {
                    let (kernel, what) = (kernel.variant().name.clone(), "threads a block");
                    return Err(DeviceError::TooMuch { kernel, what, found: 2, limit: 1 }.into());
                }
                // SAFETY: it asks for nothing that the checks do not see.
                unsafe { kernel.launch(&args, None) }
            };
            let check = |kernel: &Kernel| args.check(&Probe::new(device.clone(), kernel, None));
            tuned.run(bucket, &|| args.tensors(), &launch, Some(&check)).unwrap();
            tuned.chosen(bucket).unwrap().variant().name.clone()
        };
        let tuned = new();
        let winner = run(&tuned, None);
        let next = run(&tuned, Some(&winner));
        assert_ne!(next, winner);
        assert_eq!(run(&tuned, None), next);
        assert_eq!(run(&new(), None), next, "a later process goes by the corrected record");
    }
}
