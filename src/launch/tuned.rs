//! The kernel for the sizes at hand: from the tuning record, else timed on the call's own tensors, else the model's pick.

use super::{BindError, Kernel, Outputs, Request};
use crate::Error;
use crate::codegen::{Arch, Candidate, Family, Generator, Reason, Rejection, Variant};
use crate::device::CudaDevice;
use crate::tune::{Bucket, DeviceKey, Policy, TuneKey, TuneRecord, spec_fingerprint};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Candidates that are compiled and timed at most; the model leaves out the rest. Sixteen cores compile as many at once.
const MOST_COMPILED: usize = 16;

/// One kernel of a chain with its tuning space.
#[derive(Clone)]
pub(crate) struct Tuned {
    pub(super) device: CudaDevice,
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) name: String,
    spec: String,
    generator: Generator,
    /// Every candidate that fits, in the declaration's order.
    variants: Vec<Variant>,
    pruned: Vec<Rejection>,
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

/// What was chosen for a kernel, and why: `tilewright tune --explain`.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The timing of every candidate; absent when there was only one, or nothing was timed.
    pub record: Option<TuneRecord>,
    /// Schedules that were left out before anything was compiled.
    pub pruned: Vec<Rejection>,
    /// The variant in use.
    pub variant: Variant,
}

impl Tuned {
    /// The tuning space of a request on the device. Nothing is compiled yet.
    pub(crate) fn new(device: &CudaDevice, request: &Request, policy: Policy) -> Result<Self, Error> {
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
            policy,
            chosen: RwLock::default(),
            records: Mutex::default(),
            stand_ins: Mutex::default(),
        };
        Ok(Tuned { device: device.clone(), shared: Arc::new(shared) })
    }

    /// The same kernel on another stream of the same GPU.
    pub(crate) fn on(&self, device: &CudaDevice) -> Self {
        Tuned { device: device.clone(), shared: self.shared.clone() }
    }

    /// The spec of every candidate.
    pub(crate) fn spec(&self) -> &crate::codegen::KernelSpec {
        &self.shared.variants[0].candidate.spec
    }

    /// What a launch writes, if [`run`](Self::run) will ask for it: where no kernel is chosen for the sizes yet.
    pub(crate) fn outputs<'a>(
        &self,
        bucket: Bucket,
        outputs: impl FnOnce() -> Outputs<'a>,
    ) -> Option<Outputs<'a>> {
        (!self.knows(bucket)).then(outputs)
    }

    /// Whether a kernel is chosen for sizes.
    pub(crate) fn knows(&self, bucket: Bucket) -> bool {
        let chosen = self.shared.chosen.read().unwrap_or_else(PoisonError::into_inner);
        chosen.iter().any(|chosen| chosen.bucket == bucket)
    }

    /// What was chosen for sizes, and why.
    pub(crate) fn choice(&self, bucket: Bucket) -> Option<Choice> {
        let (shared, key) = (&*self.shared, self.key(bucket));
        let chosen = shared.chosen.read().unwrap_or_else(PoisonError::into_inner);
        let Chosen { kernel, left_out, .. } = chosen.iter().find(|chosen| chosen.bucket == bucket)?;
        let records = shared.records.lock().unwrap_or_else(PoisonError::into_inner);
        let record = records.iter().find(|record| *record.key() == key).cloned();
        let pruned = shared.pruned.iter().chain(left_out).cloned().collect();
        Some(Choice { record, pruned, variant: kernel.variant().clone() })
    }

    /// Launches the kernel for the sizes; the first time it is chosen. A launch that the driver refuses falls back to
    /// the next best candidate and corrects the record.
    ///
    /// `launch` may be called many times and must do the same each time; `outputs` are those of [`outputs`](Self::outputs).
    pub(crate) fn run(
        &self,
        bucket: Bucket,
        outputs: Option<Outputs<'_>>,
        launch: &mut dyn FnMut(&Kernel) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let kernel = match self.chosen(bucket) {
            Some(kernel) => kernel,
            // Nothing can be timed while a graph is captured; what stands in for it is not kept.
            None if self.shared.policy == Policy::Tune && self.device.is_capturing()? => {
                self.first_valid(&self.ranked(dims(&outputs)).variants)?
            }
            None => {
                let Ranked { variants, left_out } = self.ranked(dims(&outputs));
                let kernel = self.choose(bucket, &variants, outputs, launch)?;
                self.keep(bucket, &kernel, left_out);
                kernel
            }
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

/// The launch's dimensions, where they are known.
fn dims<'a>(outputs: &'a Option<Outputs<'_>>) -> &'a [(&'static str, i64)] {
    outputs.as_ref().map_or(&[], Outputs::dims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, DeviceError};
    use crate::kernels::pool;
    use crate::launch::Tolerance;
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
            Tuned::new(cuda, &request, Policy::Tune).unwrap()
        };
        let mut run = |tuned: &Tuned, refused: Option<&str>| {
            let outputs = tuned.outputs(bucket, || {
                Outputs::new(vec![q_mean.clone(), k_mean.clone()], Tolerance::Close(1e-5))
            });
            let mut launch = |kernel: &Kernel| {
                if refused == Some(kernel.variant().name.as_str()) {
                    let (kernel, what) = (kernel.variant().name.clone(), "threads a block");
                    return Err(DeviceError::TooMuch { kernel, what, found: 2, limit: 1 }.into());
                }
                let (q_mean, k_mean) = (&mut q_mean, &mut k_mean);
                // SAFETY: it asks for nothing that the checks do not see.
                unsafe { kernel.launch(&pool::Args { q: &x, k: &x, q_mean, k_mean, finished: None }, None) }
            };
            tuned.run(bucket, outputs, &mut launch).unwrap();
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
