//! How a kernel is chosen: by the record, by a race, or by the model.

use super::library::{Unusable, load_cubin, load_variants};
use super::results::Results;
use super::store::Store;
use super::trial::{Call, Trial};
use super::{Kernel, Tuned};
use crate::cache::KernelCache;
use crate::codegen::Variant;
use crate::services::{FirstUse, Services};
use crate::tune::{
    Bucket, Contender, DeviceLock, Plan, Policy, Progress, RaceSettings, TuneKey, TuneRecord, plan, race,
};
use crate::{Error, ErrorKind};
use std::sync::atomic::{AtomicUsize, Ordering};

impl Tuned {
    /// The kernel for sizes that this process has not met.
    pub(super) fn choose(
        &self,
        bucket: Bucket,
        ranked: &[&Variant],
        call: &Call<'_>,
    ) -> Result<Kernel, Error> {
        let store = Store::of(&self.device)?;
        if self.shared.policy == Policy::FirstValid {
            return self.first_valid(ranked);
        }
        let all = fingerprints(ranked);
        let key = self.key(bucket);
        let record = self.record(store, &key, ranked, call)?;
        if let Plan::Use { winner } = plan(record.as_ref(), &all)
            && let Some(kernel) = self.load(store, ranked[winner])?
        {
            tracing::debug!(kernel = self.shared.name, winner = all[winner], "tuned before");
            self.remember(record);
            return Ok(kernel);
        }
        if self.shared.policy == Policy::CacheOnly {
            // Candidates that could not take the tensors they were to be timed on are not in the record: its best will do.
            let best = record.as_ref().and_then(|record| record.best_of(&all));
            let place =
                best.and_then(|best| all.iter().position(|known| *known == best.candidate.fingerprint));
            if let Some(place) = place
                && let Some(kernel) = self.load(store, ranked[place])?
            {
                self.remember(record);
                return Ok(kernel);
            }
            return self.cached(store, ranked, record.is_none());
        }
        // Without NVRTC there is what the program or a bundle brought: the preferred schedule of it.
        if ranked.len() == 1 || !store.has_nvrtc() {
            return self.first_valid(ranked);
        }
        let tuned = Results::of(&self.device, call.tensors).and_then(|results| {
            let tuned = self.tune(store, key, ranked, call, &results);
            // The caller's tensors are as they were before, whatever came of it.
            results.put_back()?;
            tuned
        });
        match tuned {
            Err(error) if error.kind() == ErrorKind::OutOfMemory => {
                tracing::warn!(kernel = self.shared.name, %error, "not tuned: no room to keep and compare what it writes");
                self.first_valid(ranked)
            }
            tuned => tuned,
        }
    }

    /// The record of a key. One that was made where the kernel's check.rs could not be asked counts once its winner has passed; while a graph
    /// is captured nothing can be asked.
    fn record(
        &self,
        store: Store<'_>,
        key: &TuneKey,
        ranked: &[&Variant],
        call: &Call<'_>,
    ) -> Result<Option<TuneRecord>, Error> {
        let Some(mut record) = read(store.cache(), key) else { return Ok(None) };
        let Some(check) = call.check.filter(|_| !record.is_checked()) else { return Ok(Some(record)) };
        if self.device.is_capturing()? {
            return Ok(None);
        }
        let all = fingerprints(ranked);
        let best = record.best_of(&all).map(|best| best.candidate.fingerprint.clone());
        let place = best.and_then(|best| all.iter().position(|known| **known == best));
        let winner = place.map(|place| self.load(store, ranked[place])).transpose()?.flatten();
        match winner.map(|kernel| check(&kernel)) {
            Some(Ok(Ok(()))) => {
                record.set_checked(true);
                write(store.cache(), &record);
                Ok(Some(record))
            }
            refused => {
                tracing::warn!(
                    kernel = self.shared.name,
                    ?refused,
                    "the record's winner does not pass its check"
                );
                Ok(None)
            }
        }
    }

    /// The first candidate that compiles without spills. Without NVRTC, the first that the program or a bundle brought.
    pub(super) fn first_valid(&self, ranked: &[&Variant]) -> Result<Kernel, Error> {
        let store = Store::of(&self.device)?;
        if self.shared.policy == Policy::CacheOnly {
            for variant in ranked {
                if let Some(kernel) = self.load(store, variant)? {
                    return Ok(kernel);
                }
            }
            return self.cached(store, ranked, false);
        }
        let at_hand = |variant: &Variant| store.cached(self.device.arch(), variant).is_some();
        let mut usable = ranked.to_vec();
        if ranked.first().is_some_and(|first| !at_hand(first)) && !store.has_nvrtc() {
            usable.retain(|variant| at_hand(variant));
        }
        // With nothing at hand the loader says why there is no NVRTC.
        let usable = if usable.is_empty() { ranked } else { &usable[..] };
        let mut failure = None;
        for variant in usable {
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

    /// A candidate, unless the policy forbids compiling and it is not in the cache, or it spills.
    fn load(&self, store: Store<'_>, variant: &Variant) -> Result<Option<Kernel>, Error> {
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
    fn cached(&self, store: Store<'_>, ranked: &[&Variant], no_record: bool) -> Result<Kernel, Error> {
        if let [only] = ranked
            && let Some(kernel) = self.load(store, only)?
        {
            return Ok(kernel);
        }
        let what = if no_record && ranked.len() > 1 { "no tuning record" } else { "no cubin" };
        Err(Error::CacheOnly {
            kernel: self.shared.name.clone(),
            device: self.device.info().name.clone(),
            what: what.to_owned(),
            call: None,
        })
    }

    /// Times what the record leaves to time, and keeps the result.
    fn tune(
        &self,
        store: Store<'_>,
        key: TuneKey,
        ranked: &[&Variant],
        call: &Call<'_>,
        results: &Results<'_>,
    ) -> Result<Kernel, Error> {
        let shared = &*self.shared;
        let info = self.device.info();
        let waiting = Waiting::new(self.device.services(), &info.name, &shared.name);
        let lock = DeviceLock::acquire(DeviceLock::folder(), &info.uuid, DeviceLock::PATIENCE, |holder| {
            waiting.tell(Progress::Waiting { holder });
        });
        let all = fingerprints(ranked);
        // Whoever held the lock may have done it.
        let record = self.record(store, &key, ranked, call)?;
        let (places, incumbent) = match plan(record.as_ref(), &all) {
            Plan::Use { winner } => match self.load(store, ranked[winner])? {
                Some(kernel) => {
                    self.remember(record);
                    return Ok(kernel);
                }
                None => ((0..all.len()).collect(), None),
            },
            Plan::Time { candidates, incumbent } => (candidates, incumbent),
        };
        let variants: Vec<&Variant> = places.iter().map(|&place| ranked[place]).collect();
        let (done, of) = (AtomicUsize::new(0), variants.len());
        let loaded = load_variants(&self.device, &variants, |_| {
            waiting.tell(Progress::Compiling { done: 1 + done.fetch_add(1, Ordering::Relaxed), of });
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
        // Arguments that do not bind are the caller's mistake, not the candidate's: an error as of any launch. Where only
        // some candidates take them, the others are left out of the record: they may be the best for other tensors.
        let mut refused = None;
        for kernel in std::mem::take(&mut kernels) {
            results.put_back()?;
            match (call.launch)(&kernel) {
                Err(error @ Error::Bind(_)) => refused = Some(error),
                _ => {
                    results.set_bound();
                    kernels.push(kernel);
                }
            }
        }
        if let (true, Some(error)) = (kernels.is_empty(), refused) {
            return Err(error);
        }
        let contenders = kernels.iter().map(contender).collect();
        // With nothing new to race, the incumbent stays.
        let result = match incumbent.is_some() && kernels.len() < 2 {
            true => None,
            false => {
                let mut trial = Trial::new(&self.device, &kernels, call, results);
                let settings = RaceSettings::default();
                let result =
                    race(&mut trial, &settings, &mut |progress: &Progress<'_>| waiting.tell(*progress));
                if let Some(error) = trial.unchecked() {
                    return Err(error);
                }
                Some(result.map_err(|error| fail(error.to_string()))?)
            }
        };
        drop(lock);
        let mut record = match (record, incumbent, &result) {
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
        if call.check.is_none() {
            record.set_checked(false);
        }
        write(store.cache(), &record);
        let winner = record.best_of(&all).map(|timing| timing.candidate.fingerprint.clone());
        self.remember(Some(record));
        let kernel =
            kernels.into_iter().find(|kernel| Some(&kernel.variant().fingerprint) == winner.as_ref());
        kernel.ok_or_else(|| fail("no candidate is left".to_owned()))
    }

    /// Rejects a kernel whose launch the driver refused; the next best, if there is one.
    pub(super) fn demote(
        &self,
        bucket: Bucket,
        ranked: &[&Variant],
        kernel: &Kernel,
        reason: &str,
    ) -> Result<Option<Kernel>, Error> {
        let store = Store::of(&self.device)?;
        let all = fingerprints(ranked);
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
            return self.load(store, ranked[place]);
        }
        // Without a record, the next in the order of preference.
        let after = all.iter().position(|known| *known == failed).map_or(0, |place| place + 1);
        for variant in &ranked[after..] {
            if let Some(kernel) = self.load(store, variant)? {
                return Ok(Some(kernel));
            }
        }
        Ok(None)
    }
}

/// Tells how far the first use of a kernel is, to its end.
struct Waiting<'a> {
    services: &'a Services,
    device: &'a str,
    kernel: &'a str,
}

impl<'a> Waiting<'a> {
    fn new(services: &'a Services, device: &'a str, kernel: &'a str) -> Self {
        tracing::info!(device, kernel, "tuning");
        Waiting { services, device, kernel }
    }

    fn tell(&self, progress: Progress<'_>) {
        self.services.tell(&FirstUse::new(self.device, self.kernel, progress));
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.tell(Progress::Done);
    }
}

fn fingerprints<'a>(ranked: &[&'a Variant]) -> Vec<&'a str> {
    ranked.iter().map(|variant| variant.fingerprint.as_str()).collect()
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

/// A loaded kernel as a record has it.
fn contender(kernel: &Kernel) -> Contender {
    let blocks_per_sm = kernel.blocks_per_sm().ok();
    Contender::of_loaded(kernel.variant(), kernel.report(), kernel.compile_time(), blocks_per_sm)
}
