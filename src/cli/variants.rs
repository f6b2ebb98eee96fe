//! Variants compiled for some architectures: what `compile` and `demo` show.

use super::progress;
use serde::Serialize;
use serde_json::{Map, Value};
use std::time::Duration;
use tilewright::codegen::{Arch, Budget, Error, Generator, KernelSource, Variant};
use tilewright::compile::{CompileJob, Cubin, PtxasReport, compile_all};
use tilewright::toolchain::Toolchain;

/// A variant with what became of it on each architecture.
#[derive(Serialize)]
pub struct VariantReport {
    pub kernel: String,
    pub name: String,
    pub fingerprint: String,
    pub spec: Map<String, Value>,
    pub schedule: Map<String, Value>,
    pub budget: Budget,
    pub compiled: Vec<ArchReport>,
}

/// One compilation.
#[derive(Serialize)]
pub struct ArchReport {
    pub arch: String,
    /// Whether this is the candidate that is tried first there; others are compiled because they fit.
    pub preferred: bool,
    /// None when it does not compile.
    pub ptxas: Option<PtxasReport>,
    /// Dynamic and static shared memory of a block, bytes.
    pub shared_bytes: i64,
    pub compile_ms: f64,
    pub error: Option<String>,
}

impl ArchReport {
    /// Of the preferred candidate.
    pub fn new(variant: &Variant, arch: &str, ptxas: PtxasReport, time: Duration) -> Self {
        ArchReport {
            arch: arch.to_owned(),
            preferred: true,
            shared_bytes: variant.candidate.budget.smem_bytes + i64::from(ptxas.static_smem_bytes),
            ptxas: Some(ptxas),
            compile_ms: time.as_secs_f64() * 1e3,
            error: None,
        }
    }

    fn failed(variant: &Variant, arch: &str, error: String) -> Self {
        ArchReport {
            arch: arch.to_owned(),
            preferred: true,
            ptxas: None,
            shared_bytes: variant.candidate.budget.smem_bytes,
            compile_ms: 0.0,
            error: Some(error),
        }
    }

    /// Whether registers spill.
    pub fn spills(&self) -> bool {
        self.ptxas.is_some_and(|report| report.spills())
    }

    /// Compiled, and without spills if it is preferred: another candidate that spills is never taken.
    pub fn is_good(&self) -> bool {
        self.ptxas.is_some() && !(self.preferred && self.spills())
    }
}

impl VariantReport {
    /// A variant that has not been compiled.
    pub fn new(variant: &Variant) -> Self {
        let candidate = &variant.candidate;
        let json = |value: &tilewright::codegen::Value| {
            serde_json::to_value(value).expect("a dtype or an integer is plain data")
        };
        VariantReport {
            kernel: candidate.spec.kernel().to_owned(),
            name: variant.name.clone(),
            fingerprint: variant.fingerprint.clone(),
            spec: candidate.spec.values().iter().map(|(name, value)| (name.clone(), json(value))).collect(),
            schedule: (candidate.schedule.values.iter())
                .map(|(name, value)| (name.clone(), (*value).into()))
                .collect(),
            budget: candidate.budget,
            compiled: Vec::new(),
        }
    }
}

/// A variant and the architectures it is to be compiled for.
pub struct Job {
    pub variant: Variant,
    pub archs: Vec<Arch>,
    /// Those of them on which the variant is the preferred candidate.
    pub preferred: Vec<Arch>,
}

/// The shipped variants of a kernel, which are those that its `ship` names, with those of `archs` whose limits they keep.
pub fn shipped(source: &KernelSource, archs: &[Arch]) -> Result<Vec<Job>, Error> {
    let generator = Generator::new(source)?;
    let mut jobs = Vec::new();
    for variant in generator.shipped()? {
        let (mut fitting, mut preferred) = (Vec::new(), Vec::new());
        for &arch in archs {
            let accepted = generator.candidates(&variant.candidate.spec, arch)?.accepted;
            let place =
                accepted.iter().position(|candidate| candidate.schedule == variant.candidate.schedule);
            fitting.extend(place.map(|_| arch));
            preferred.extend(place.filter(|&place| place == 0).map(|_| arch));
        }
        if !fitting.is_empty() {
            jobs.push(Job { variant, archs: fitting, preferred });
        }
    }
    Ok(jobs)
}

/// Compiles everything on all cores, with a progress bar.
pub fn compile(toolchain: &Toolchain, jobs: &[Job]) -> Vec<VariantReport> {
    compile_with(toolchain, jobs, |_, _| {})
}

/// The same; what compiles is shown to `each`.
pub fn compile_with(
    toolchain: &Toolchain,
    jobs: &[Job],
    mut each: impl FnMut(&Variant, &Cubin),
) -> Vec<VariantReport> {
    let pairs: Vec<(&Variant, Arch)> =
        jobs.iter().flat_map(|job| job.archs.iter().map(|&arch| (&job.variant, arch))).collect();
    let compile_jobs = pairs.iter().map(|(variant, arch)| CompileJob {
        name: variant.name.clone(),
        source: variant.source.clone(),
        arch: arch.name().to_owned(),
    });
    let bar = progress::bar(pairs.len(), "compiling");
    let cubins = compile_all(toolchain, compile_jobs.collect(), |done| {
        bar.set_message(done.job.arch.clone());
        bar.inc(1);
    });
    bar.finish_and_clear();
    let mut results = pairs.iter().zip(cubins).map(|((variant, arch), cubin)| match cubin {
        Ok(cubin) => {
            each(variant, &cubin);
            ArchReport::new(variant, arch.name(), cubin.report, cubin.compile_time)
        }
        Err(error) => ArchReport::failed(variant, arch.name(), error.to_string()),
    });
    let report = |job: &Job| {
        let compiled = results.by_ref().take(job.archs.len()).zip(&job.archs);
        let of = |(report, arch): (ArchReport, _)| ArchReport {
            preferred: job.preferred.contains(arch),
            ..report
        };
        VariantReport { compiled: compiled.map(of).collect(), ..VariantReport::new(&job.variant) }
    };
    jobs.iter().map(report).collect()
}
