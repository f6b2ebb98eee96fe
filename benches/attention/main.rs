//! The GPU kernels on the three workloads of video diffusion: `cargo bench --bench attention [-- FILTER] [-- --backward]`.
//! `--backward`: the gradients alone, with the time of every schedule. `--tails`: a user's call and its backward at 5 % kept, with what stands for
//! the rest; `--json FILE` writes these figures.
//!
//! Random bf16 data, blocks of 128×64, medians of CUDA-event times. Effective TFLOP/s count the kept blocks alone:
//! 4 · batch · heads · seq_q · seq_kv · d · kept share / time, 2.5 times that for a backward. `benches/peers.py` times dense attention beside it.

#[path = "../support/mod.rs"]
mod support;
mod tails;
#[path = "../support/timing.rs"]
mod timing;

use clap::Parser;
use std::path::PathBuf;
use support::{draw, random};
use tilewright::attention::Shapes;
use tilewright::services::Policy;
use tilewright::{
    Attention, BlockMask, BlockSize, DType, Device, Error, HeadDim, Output, SeqLens, Tensor, top_k, top_p,
};
use timing::{LAUNCHES, median};

#[derive(Parser)]
struct Options {
    /// Only workloads whose name has this in it.
    #[arg(default_value = "")]
    filter: String,
    /// The gradients alone.
    #[arg(long)]
    backward: bool,
    /// What stands for dropped blocks.
    #[arg(long, conflicts_with = "backward")]
    tails: bool,
    /// Where to write the figures of `--tails`.
    #[arg(long, requires = "tails")]
    json: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Workload {
    name: &'static str,
    heads: usize,
    seq: usize,
    d: usize,
}

const WORKLOADS: [Workload; 3] = [
    Workload { name: "Wan 480p", heads: 12, seq: 32_760, d: 128 },
    Workload { name: "Wan 720p", heads: 10, seq: 75_600, d: 128 },
    Workload { name: "CogVideoX", heads: 30, seq: 17_776, d: 64 },
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(reason) => {
            println!("skipped: no GPU ({reason})");
            return Ok(());
        }
    };
    let (major, minor) = device.as_cuda().expect("asked for above").info().driver_version;
    println!("{device}, driver of CUDA {major}.{minor}, bf16, 128×64 blocks, median of {LAUNCHES} launches");
    let mut figures = tails::Figures::new(&device, LAUNCHES, format!("{major}.{minor}"));
    for workload in WORKLOADS.iter().filter(|workload| workload.name.contains(&options.filter)) {
        if options.tails {
            figures.workloads.push(tails::measure(&device, workload)?);
            // What was measured is there, should a later workload fail.
            if let Some(path) = &options.json {
                std::fs::write(path, serde_json::to_vec_pretty(&figures)?)?;
            }
            continue;
        }
        if !options.backward {
            run(&device, workload)?;
        }
        run_backward(&device, workload, options.backward)?;
    }
    Ok(())
}

fn run(device: &Device, workload: &Workload) -> Result<(), Error> {
    let &Workload { name, heads, seq, d } = workload;
    let cuda = device.as_cuda().expect("a GPU");
    let tensor = |seed| Tensor::from_slice(&random(heads * seq * d, seed), &[1, heads, seq, d])?.to(device);
    let (q, k, v) = (tensor(1)?, tensor(2)?, tensor(3)?);
    let head_dim = HeadDim::new(d)?;
    let build = |policy| {
        Attention::builder(head_dim, DType::Bf16)
            .select(top_k(0.05) | top_p(0.05))
            .policy(policy)
            .build(device)
    };
    let start = std::time::Instant::now();
    let attention = build(Policy::Tune)?;
    attention.forward(&q, &k, &v)?;
    println!("\n{name}: {heads} heads × {seq} × {d}; first call after {:.0?}", start.elapsed());
    let plan = attention.plan(Shapes::of(&q, &k)?)?;
    for kernel in plan.kernels() {
        let (report, name) = (kernel.report(), &kernel.variant().name);
        println!("  {name:<58} {:>3} registers, {} spilled", report.registers, report.spill_store_bytes);
    }
    let (q_blocks, kv_blocks) = (seq.div_ceil(128), seq.div_ceil(64));
    for kept in [0.02, 0.05, 0.10, 0.25, 1.0] {
        let mask = random_mask(heads, (q_blocks, kv_blocks), kept, seq)?;
        let share = 1.0 - mask.sparsity()?;
        let mask = mask.to(device)?;
        let ms = median(cuda, || attention.attend_with(&q, &k, &v, &mask).map(drop))?;
        let flops = 4.0 * heads as f64 * (seq as f64).powi(2) * d as f64 * share;
        println!(
            "  forward, {:>5.2} % kept                          {ms:>8.3} ms  {:>6.0} effective TF/s",
            100.0 * share,
            flops / f64::from(ms) / 1e9
        );
    }
    let mask = random_mask(heads, (q_blocks, kv_blocks), 0.05, seq)?.to(device)?;
    for policy in [Policy::FirstValid, Policy::Tune] {
        let attention = build(policy)?;
        let select = median(cuda, || attention.mask(&q, &k).map(drop))?;
        let forward = median(cuda, || attention.attend_with(&q, &k, &v, &mask).map(drop))?;
        let both = median(cuda, || attention.forward(&q, &k, &v).map(drop))?;
        println!(
            "  {policy:<12} mask (pool, rank, both indices) {select:.3} ms, forward {forward:.3} ms, \
             a user's call {both:.3} ms"
        );
    }
    Ok(())
}

/// The backward at 5 % kept, with the tuner's choice; `explain`: with its reasons.
fn run_backward(device: &Device, workload: &Workload, explain: bool) -> Result<(), Error> {
    let &Workload { name, heads, seq, d } = workload;
    let cuda = device.as_cuda().expect("a GPU");
    let tensor = |seed| Tensor::from_slice(&random(heads * seq * d, seed), &[1, heads, seq, d])?.to(device);
    let (q, k, v, d_out) = (tensor(1)?, tensor(2)?, tensor(3)?, tensor(4)?);
    let attention = Attention::builder(HeadDim::new(d)?, DType::Bf16).policy(Policy::Tune).build(device)?;
    let mask = random_mask(heads, (seq.div_ceil(128), seq.div_ceil(64)), 0.05, seq)?;
    let share = 1.0 - mask.sparsity()?;
    let mask = mask.to(device)?;
    let (out, lse) = attention.attend_with(&q, &k, &v, &mask)?;
    let output = Output { out, lse, mask };
    let start = std::time::Instant::now();
    attention.backward(&q, &k, &v, &output, &d_out, None)?;
    println!("\n{name}, backward; first call after {:.0?}", start.elapsed());
    let plan = attention.plan(Shapes::of(&q, &k)?)?.for_mask(&output.mask);
    for choice in plan.choices() {
        let candidate = &choice.variant.candidate;
        let timing = choice.record.as_ref().and_then(|record| record.winner()?.median_us());
        let time = timing.map_or_else(String::new, |us| format!("{:.3} ms", us / 1e3));
        println!("  {:<70} {time:>9}", choice.variant.name);
        if let Some(record) = choice.record.filter(|_| explain && candidate.spec.kernel() != "forward") {
            println!("{}", record.explain(&choice.pruned));
        }
    }
    let ms = median(cuda, || attention.backward(&q, &k, &v, &output, &d_out, None).map(drop))?;
    let flops = 10.0 * heads as f64 * (seq as f64).powi(2) * d as f64 * share;
    println!(
        "  backward, {:>5.2} % kept                         {ms:>8.3} ms  {:>6.0} effective TF/s",
        100.0 * share,
        flops / f64::from(ms) / 1e9
    );
    Ok(())
}

/// Every row keeps the same number of blocks, at random places.
fn random_mask(
    heads: usize,
    (rows, columns): (usize, usize),
    kept: f64,
    seq: usize,
) -> Result<BlockMask, Error> {
    let count = ((columns as f64 * kept).round() as usize).max(1);
    let mut state = 7;
    let mut map = vec![false; heads * rows * columns];
    for row in map.chunks_mut(columns) {
        draw(row, count, &mut state);
    }
    BlockMask::from_dense(&map, [1, heads, rows, columns], BlockSize::default(), SeqLens::same(seq))
}
