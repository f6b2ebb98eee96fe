//! The kernels behind the demonstration: those that ran on the GPU, or, without one, the same for every architecture
//! that is shipped for.

use super::data;
use crate::cli::error::CliError;
use crate::cli::variants::{self, ArchReport, Job, VariantReport};
use std::sync::Arc;
use tilewright::codegen::{Arch, Generator, KernelSource, Value};
use tilewright::kernels::{forward, pool, rank, transpose};
use tilewright::launch::Kernel;
use tilewright::toolchain::Toolchain;
use tilewright::{Attention, BlockSize};

/// A report for each of the kernels that ran; without a toolchain nothing in it is compiled.
pub fn reports(
    attention: &Attention,
    loaded: &[Kernel],
    toolchain: Option<&Toolchain>,
) -> Result<Vec<VariantReport>, CliError> {
    if loaded.is_empty() {
        let jobs = jobs(attention.blocks())?;
        return Ok(match toolchain {
            Some(toolchain) => variants::compile(toolchain, &jobs),
            None => jobs.iter().map(|job| VariantReport::new(&job.variant)).collect(),
        });
    }
    let arch = attention.device().arch().unwrap_or_default();
    let mut reports: Vec<VariantReport> = Vec::new();
    for kernel in loaded {
        let variant = kernel.variant();
        let compiled = ArchReport::new(variant, &arch, *kernel.report(), kernel.compile_time());
        reports.push(VariantReport { compiled: vec![compiled], ..VariantReport::new(variant) });
    }
    Ok(reports)
}

/// What a GPU would load first, for every architecture that is shipped for.
fn jobs(blocks: BlockSize) -> Result<Vec<Job>, CliError> {
    let (dtype, tile) = (Value::from(data::DTYPE), Value::from(data::HEAD_DIM.tile() as i64));
    let (block_q, block_kv) = (Value::from(blocks.q() as i64), Value::from(blocks.kv() as i64));
    let of_tensors = vec![("T", dtype), ("D", tile), ("BLOCK_Q", block_q), ("BLOCK_KV", block_kv)];
    // The demonstration's rows have few key blocks.
    let capacity = Value::from(rank::SPECS[0].capacity);
    let chain: [(&KernelSource, Vec<(&str, Value)>); 4] = [
        (&pool::SOURCE, of_tensors.clone()),
        (&rank::SOURCE, vec![("D", tile), ("CAPACITY", capacity)]),
        (&transpose::SOURCE, Vec::new()),
        (&forward::SOURCE, of_tensors),
    ];
    let mut jobs: Vec<Job> = Vec::new();
    for (source, values) in &chain {
        let generator = Generator::new(source)?;
        let spec = Arc::new(generator.spec(values)?);
        for arch in Arch::SHIPPED {
            let variant = generator.render(&generator.candidates(&spec, arch)?.accepted[0])?;
            match jobs.iter_mut().find(|job| job.variant.name == variant.name) {
                Some(job) if job.archs.contains(&arch) => {}
                Some(job) => {
                    job.archs.push(arch);
                    job.preferred.push(arch);
                }
                None => jobs.push(Job { variant, archs: vec![arch], preferred: vec![arch] }),
            }
        }
    }
    Ok(jobs)
}
