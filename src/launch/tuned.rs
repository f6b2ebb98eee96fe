//! The kernel for the sizes at hand: from the tuning record, else timed on the call's own tensors, else the model's pick.

use super::library::{Unusable, load_cubin, load_variants};
use super::progress::ProgressLine;
use super::store::Store;
use super::trial::Trial;
use super::{Kernel, Outputs, Request};
use crate::Error;
use crate::cache::KernelCache;
use crate::codegen::{Arch, Generator, Rejection, Variant};
use crate::device::CudaDevice;
use crate::tune::{
    Bucket, Contender, DeviceKey, DeviceLock, Plan, Policy, Progress, RaceSettings, TuneKey, TuneRecord,
    plan, race, spec_fingerprint,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// One kernel of a chain with its tuning space.
#[derive(Clone)]
pub(crate) struct Tuned {
    device: CudaDevice,
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    spec: String,
    /// Every candidate, the preferred first.
    variants: Vec<Variant>,
    pruned: Vec<Rejection>,
    policy: Policy,
    chosen: RwLock<Vec<(Bucket, Kernel)>>,
    /// The records this process has read or made.
    records: Mutex<Vec<TuneRecord>>,
}

/// What was chosen for a kernel, and why: `tilewright tune --explain`.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The timing of every candidate; absent when there was only one, or nothing was timed.
    pub record: Option<TuneRecord>,
    /// Schedules that were pruned before anything was compiled.
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
        let candidates = generator.candidates(&spec, arch)?;
        let variants = candidates
            .accepted
            .iter()
            .map(|candidate| generator.render(candidate))
            .collect::<Result<Vec<_>, _>>()?;
        let shared = Shared {
            name: generator.kernel().name.clone(),
            spec: spec_fingerprint(request.source(), &spec),
            variants,
            pruned: candidates.rejected,
            policy,
            chosen: RwLock::default(),
            records: Mutex::default(),
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
        chosen.iter().any(|(known, _)| *known == bucket)
    }

    /// The kernel chosen last, if any was.
    pub(crate) fn current(&self) -> Option<Kernel> {
        self.shared
            .chosen
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .last()
            .map(|(_, kernel)| kernel.on(&self.device))
    }

    /// What was chosen last, and why.
    pub(crate) fn choice(&self) -> Option<Choice> {
        let kernel = self.current()?;
        let records = self.shared.records.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Choice {
            record: records.last().cloned(),
            pruned: self.shared.pruned.clone(),
            variant: kernel.variant().clone(),
        })
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
                self.first_valid()?
            }
            None => {
                let kernel = self.choose(bucket, outputs, launch)?;
                self.keep(bucket, &kernel);
                kernel
            }
        };
        match launch(&kernel) {
            Err(Error::Device(error)) if error.is_refused_launch() => {
                let next = self.demote(bucket, &kernel, &error.to_string())?.ok_or(error)?;
                self.keep(bucket, &next);
                launch(&next)
            }
            launched => launched,
        }
    }

    /// The kernel chosen for sizes.
    pub(crate) fn chosen(&self, bucket: Bucket) -> Option<Kernel> {
        let chosen = self.shared.chosen.read().unwrap_or_else(PoisonError::into_inner);
        chosen.iter().find(|(known, _)| *known == bucket).map(|(_, kernel)| kernel.on(&self.device))
    }

    fn keep(&self, bucket: Bucket, kernel: &Kernel) {
        let mut chosen = self.shared.chosen.write().unwrap_or_else(PoisonError::into_inner);
        chosen.retain(|(known, _)| *known != bucket);
        chosen.push((bucket, kernel.clone()));
    }

    fn key(&self, bucket: Bucket) -> TuneKey {
        let info = self.device.info();
        TuneKey {
            spec: self.shared.spec.clone(),
            device: DeviceKey::new(info, info.memory_clock_khz),
            bucket,
        }
    }

    fn fingerprints(&self) -> Vec<&str> {
        self.shared.variants.iter().map(|variant| variant.fingerprint.as_str()).collect()
    }

    fn choose(
        &self,
        bucket: Bucket,
        outputs: Option<Outputs<'_>>,
        launch: &mut dyn FnMut(&Kernel) -> Result<(), Error>,
    ) -> Result<Kernel, Error> {
        let store = Store::global()?;
        if self.shared.policy == Policy::FirstValid {
            return self.first_valid();
        }
        let all = self.fingerprints();
        let key = self.key(bucket);
        let record = read(store.cache(), &key);
        if let Plan::Use { winner } = plan(record.as_ref(), &all)
            && let Some(kernel) = self.load(store, winner)?
        {
            tracing::debug!(kernel = self.shared.name, winner = all[winner], "tuned before");
            self.remember(record);
            return Ok(kernel);
        }
        if self.shared.policy == Policy::CacheOnly {
            return self.cached(store, record.is_none());
        }
        let untimed = self.shared.variants.len() == 1;
        match outputs {
            // Without NVRTC there is what the program or a bundle brought: the preferred schedule of it.
            Some(outputs) if !untimed && store.has_nvrtc() => self.tune(store, key, &outputs, launch),
            _ => self.first_valid(),
        }
    }

    /// The first candidate that compiles without spills.
    fn first_valid(&self) -> Result<Kernel, Error> {
        let mut failure = None;
        for variant in &self.shared.variants {
            match load_variants(&self.device, &[variant], |_| {})?.remove(0) {
                Ok(kernel) => return Ok(kernel),
                Err(Unusable::Failed(error)) => failure = failure.or(Some(*error)),
                Err(Unusable::Spills(_)) => {}
            }
        }
        let spills =
            || Error::Spills { kernel: self.shared.name.clone(), arch: self.device.arch().to_owned() };
        Err(failure.unwrap_or_else(spills))
    }

    /// Candidate `i`, unless the policy forbids compiling and it is not in the cache, or it spills.
    fn load(&self, store: &Store, i: usize) -> Result<Option<Kernel>, Error> {
        let variant = &self.shared.variants[i];
        let loaded = match self.shared.policy {
            Policy::CacheOnly => match store.cached(self.device.arch(), variant) {
                Some(cubin) => load_cubin(&self.device, variant, cubin)?,
                None => return Ok(None),
            },
            _ => load_variants(&self.device, &[variant], |_| {})?.remove(0),
        };
        Ok(loaded.ok())
    }

    /// What the cache holds: the only candidate, or an error that says what is missing.
    fn cached(&self, store: &Store, no_record: bool) -> Result<Kernel, Error> {
        if self.shared.variants.len() == 1
            && let Some(kernel) = self.load(store, 0)?
        {
            return Ok(kernel);
        }
        let what = if no_record && self.shared.variants.len() > 1 { "no tuning record" } else { "no cubin" };
        Err(Error::CacheOnly {
            kernel: self.shared.name.clone(),
            device: self.device.info().name.clone(),
            what: what.to_owned(),
            command: "tilewright tune".to_owned(),
        })
    }

    /// Times what the record leaves to time, and keeps the result.
    fn tune(
        &self,
        store: &Store,
        key: TuneKey,
        outputs: &Outputs<'_>,
        launch: &mut dyn FnMut(&Kernel) -> Result<(), Error>,
    ) -> Result<Kernel, Error> {
        let shared = &*self.shared;
        let line = ProgressLine::new(&self.device.info().name, &shared.name);
        let lock = store.cache().map(|cache| {
            let device = format!("{}-{}", key.device.folder_name(), self.device.info().ordinal);
            let folder = cache.root().join("v1").join("locks");
            DeviceLock::acquire(&folder, &device, DeviceLock::PATIENCE, || line.show(&Progress::Waiting))
        });
        let all = self.fingerprints();
        // Whoever held the lock may have done it.
        let record = read(store.cache(), &key);
        let (places, incumbent) = match plan(record.as_ref(), &all) {
            Plan::Use { winner } => match self.load(store, winner)? {
                Some(kernel) => {
                    self.remember(record);
                    return Ok(kernel);
                }
                None => ((0..all.len()).collect(), None),
            },
            Plan::Time { candidates, incumbent } => (candidates, incumbent),
        };
        let variants: Vec<&Variant> = places.iter().map(|&place| &shared.variants[place]).collect();
        let (done, of) = (AtomicUsize::new(0), variants.len());
        let loaded = load_variants(&self.device, &variants, |_| {
            line.show(&Progress::Compiling { done: 1 + done.fetch_add(1, Ordering::Relaxed), of });
        })?;
        let (mut kernels, mut rejected) = (Vec::new(), Vec::new());
        for (variant, loaded) in variants.into_iter().zip(loaded) {
            match loaded {
                Ok(kernel) => kernels.push(kernel),
                Err(why) => rejected.push((Contender::of_variant(variant), why.reason())),
            }
        }
        let fail = |reason: String| Error::Tune {
            kernel: shared.name.clone(),
            device: self.device.info().name.clone(),
            reason,
        };
        if kernels.is_empty() {
            let reasons: Vec<String> = rejected.into_iter().map(|(_, reason)| reason).collect();
            return Err(fail(reasons.join("; ")));
        }
        let contenders = kernels.iter().map(Contender::of_kernel).collect();
        // With nothing new to race, the incumbent stays.
        let result = match incumbent.is_some() && kernels.len() < 2 {
            true => None,
            false => {
                let mut trial = Trial::new(&self.device, &kernels, launch, outputs);
                let settings = RaceSettings::default();
                let result = race(&mut trial, &settings, &mut |progress: &Progress<'_>| line.show(progress));
                Some(result.map_err(|error| fail(error.to_string()))?)
            }
        };
        drop(lock);
        let record = match (record, incumbent, &result) {
            (Some(mut record), Some(_), result) => {
                record.merge(contenders, rejected, result.as_ref());
                record
            }
            (_, _, Some(result)) => {
                TuneRecord::new(key, contenders, rejected, result).map_err(|error| fail(error.to_string()))?
            }
            _ => {
                return Err(Error::Spills {
                    kernel: shared.name.clone(),
                    arch: self.device.arch().to_owned(),
                });
            }
        };
        write(store.cache(), &record);
        let winner = record.best_of(&all).map(|timing| timing.candidate.fingerprint.clone());
        self.remember(Some(record));
        let kernel =
            kernels.into_iter().find(|kernel| Some(&kernel.variant().fingerprint) == winner.as_ref());
        kernel.ok_or_else(|| fail("no candidate is left".to_owned()))
    }

    /// Rejects a kernel whose launch the driver refused; the next best, if there is one.
    fn demote(&self, bucket: Bucket, kernel: &Kernel, reason: &str) -> Result<Option<Kernel>, Error> {
        let store = Store::global()?;
        let all = self.fingerprints();
        let key = self.key(bucket);
        let failed = kernel.variant().fingerprint.as_str();
        if let Some(mut record) = read(store.cache(), &key) {
            // What the record rejected for its output must not come back: the record alone decides.
            let next = record.demote(failed, reason, &all);
            let Some(place) = next.and_then(|next| all.iter().position(|known| **known == *next)) else {
                return Ok(None);
            };
            write(store.cache(), &record);
            self.remember(Some(record));
            return self.load(store, place);
        }
        // Without a record, the next in the order of preference.
        let after = all.iter().position(|known| *known == failed).map_or(0, |place| place + 1);
        for place in after..all.len() {
            if let Some(kernel) = self.load(store, place)? {
                return Ok(Some(kernel));
            }
        }
        Ok(None)
    }

    fn remember(&self, record: Option<TuneRecord>) {
        let mut records = self.shared.records.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = record {
            records.retain(|known| known.key() != record.key());
            records.push(record);
        }
    }
}

fn read(cache: Option<&KernelCache>, key: &TuneKey) -> Option<TuneRecord> {
    let bytes = cache?.read_record(&key.device.folder_name(), &key.file_name())?;
    TuneRecord::usable(&bytes, key)
}

fn write(cache: Option<&KernelCache>, record: &TuneRecord) {
    let Some(cache) = cache else { return };
    let key = record.key();
    if let Err(error) = cache.write_record(&key.device.folder_name(), &key.file_name(), &record.to_json()) {
        tracing::warn!(%error, "the tuning record is not kept: the next process tunes again");
    }
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
    fn a_refused_launch_falls_back_to_the_next_and_corrects_the_record() {
        let Ok(device) = Device::cuda(0) else {
            println!("skipped: no GPU");
            return;
        };
        if std::env::var_os(crate::cache::CACHE_VARIABLE).is_none() {
            println!("skipped: it corrupts a record on purpose, so it wants a TILEWRIGHT_CACHE of its own");
            return;
        }
        let cuda = device.as_cuda().unwrap();
        let x = Tensor::zeros_on(&device, DType::Bf16, &[1, 3, 5000, 64]).unwrap();
        let mut mean = Tensor::zeros_on(&device, DType::F32, &[1, 3, 79, 64]).unwrap();
        let workload = Workload { batch: 1, heads: 3, seq_q: 5000, seq_kv: 5000, density: 0.5 };
        let bucket = Bucket::of(&workload);
        let new = || {
            let request =
                Request::new(&pool::SOURCE).value("T", DType::Bf16).value("D", 64).value("BLOCK", 64);
            Tuned::new(cuda, &request, Policy::Tune).unwrap()
        };
        let mut run = |tuned: &Tuned, refused: Option<&str>| {
            let outputs = tuned.outputs(bucket, || Outputs::new(vec![mean.clone()], Tolerance::Close(1e-5)));
            let mut launch = |kernel: &Kernel| {
                if refused == Some(kernel.variant().name.as_str()) {
                    let (kernel, what) = (kernel.variant().name.clone(), "threads a block");
                    return Err(DeviceError::TooMuch { kernel, what, found: 2, limit: 1 }.into());
                }
                kernel.launch(&pool::Args { x: &x, mean: &mut mean }, None)
            };
            tuned.run(bucket, outputs, &mut launch).unwrap();
            tuned.current().unwrap().variant().name.clone()
        };
        let tuned = new();
        let winner = run(&tuned, None);
        let next = run(&tuned, Some(&winner));
        assert_ne!(next, winner);
        assert_eq!(run(&tuned, None), next);
        assert_eq!(run(&new(), None), next, "a later process goes by the corrected record");
    }
}
