//! The GPU kernels on the three workloads of video diffusion: `cargo bench --bench attention [-- FILTER] [-- --backward]`.
//! `--backward`: the gradients alone, with the time of every schedule. `--tails`: a user's call at 5 % kept with what stands for the rest, and its
//! gradients; `--json=FILE` writes these figures.
//!
//! Random bf16 data, blocks of 128×64, medians of CUDA-event times. Effective TFLOP/s count the kept blocks alone:
//! 4 · batch · heads · seq_q · seq_kv · d · kept share / time, 2.5 times that for a backward. `benches/peers.py` times dense attention beside it.

mod support;

use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use support::{draw, random};
use tilewright::attention::{Inputs, Plan, Shapes};
use tilewright::device::{CudaDevice, DeviceError};
use tilewright::services::Policy;
use tilewright::{
    Attention, BlockMask, BlockSize, DType, Device, Error, HeadDim, Output, Scores, SeqLens, Tail, Tensor,
    top_k, top_p,
};

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

const LAUNCHES: usize = 30;

fn main() -> Result<(), Error> {
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(reason) => {
            println!("skipped: no GPU ({reason})");
            return Ok(());
        }
    };
    let gradients_alone = std::env::args().any(|arg| arg == "--backward");
    let tails_alone = std::env::args().any(|arg| arg == "--tails");
    let json = std::env::args().find_map(|arg| arg.strip_prefix("--json=").map(PathBuf::from));
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    let (major, minor) = device.as_cuda().expect("asked for above").info().driver_version;
    println!("{device}, driver of CUDA {major}.{minor}, bf16, 128×64 blocks, median of {LAUNCHES} launches");
    let mut figures = Vec::new();
    for workload in WORKLOADS.iter().filter(|workload| workload.name.contains(&filter)) {
        if tails_alone {
            figures.extend(run_tails(&device, workload)?);
            // What was measured is there, should a later workload fail.
            if let Some(path) = &json {
                let report = serde_json::json!({ "device": device.to_string(), "figures": figures });
                std::fs::write(path, format!("{report:#}\n")).expect("the file can be written");
            }
            continue;
        }
        if !gradients_alone {
            run(&device, workload)?;
        }
        run_backward(&device, workload, gradients_alone)?;
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

/// What stands for dropped blocks, and what blocks are selected by.
type Way = (Tail, Scores);

const WAYS: [Way; 8] = [
    (Tail::None, Scores::Means),
    (Tail::Block, Scores::Means),
    (Tail::Row { keys: 64 }, Scores::Means),
    (Tail::Row { keys: 128 }, Scores::Means),
    (Tail::Row { keys: 256 }, Scores::Means),
    (Tail::None, Scores::Keys),
    (Tail::Block, Scores::Keys),
    (Tail::Row { keys: 128 }, Scores::Keys),
];

/// One way's times on a workload, in ms.
#[derive(Serialize)]
struct Figure {
    workload: &'static str,
    tail: String,
    scores: String,
    /// Mask, tail and forward.
    call: Times,
    /// Absent where it is that of another way.
    backward: Option<Times>,
}

/// Of rounds by turns, each a median of launches.
#[derive(Serialize, Clone)]
struct Times {
    median: f32,
    least: f32,
    most: f32,
    /// How often the first way's median.
    times: f32,
}

/// A user's call at 5 % kept, without a tail and with each, by turns.
fn run_tails(device: &Device, workload: &Workload) -> Result<Vec<Figure>, Error> {
    let &Workload { name, heads, seq, d } = workload;
    let cuda = device.as_cuda().expect("a GPU");
    let tensor = |seed| Tensor::from_slice(&random(heads * seq * d, seed), &[1, heads, seq, d])?.to(device);
    let (q, k, v) = (tensor(1)?, tensor(2)?, tensor(3)?);
    let head_dim = HeadDim::new(d)?;
    println!("\n{name}: {heads} heads × {seq} × {d}, top 5 %");
    let attention = |(tail, scores)| {
        let builder = Attention::builder(head_dim, DType::Bf16).select(top_k(0.05).by(scores)).tail(tail);
        builder.policy(Policy::Tune).build(device)
    };
    let mut known = BTreeSet::new();
    let mut explain = |plan: &Plan| {
        for choice in plan.choices().iter().filter(|choice| known.insert(choice.variant.name.clone())) {
            let timing = choice.record.as_ref().and_then(|record| record.winner()?.median_us());
            let time = timing.map_or_else(String::new, |us| format!("{us:.1} µs"));
            println!("    {:<70} {time:>10}", choice.variant.name);
        }
    };
    let mut calls = Vec::new();
    for way in WAYS {
        let start = std::time::Instant::now();
        let plan = attention(way)?.plan(Shapes::of(&q, &k)?)?;
        let mut workspace = plan.workspace()?;
        plan.forward_into(Inputs { q: &q, k: &k, v: &v }, &mut workspace)?;
        println!("  {way:?}: first call after {:.0?}", start.elapsed());
        explain(&plan);
        calls.push((plan, workspace, Vec::new()));
    }
    for _ in 0..5 {
        for (plan, workspace, times) in &mut calls {
            times.push(median_mut(cuda, || {
                plan.forward_into(Inputs { q: &q, k: &k, v: &v }, workspace).map(drop)
            })?);
        }
    }
    let forward = report("a user's call", calls.into_iter().map(|(.., times)| times));
    let d_out = tensor(4)?;
    let mut calls = Vec::new();
    // What selects the blocks changes nothing of a backward.
    for way in WAYS.into_iter().filter(|(_, scores)| *scores == Scores::Means) {
        let attention = attention(way)?;
        let output = attention.forward(&q, &k, &v)?;
        attention.backward(&q, &k, &v, &output, &d_out, None)?;
        explain(&attention.plan(Shapes::of(&q, &k)?)?);
        calls.push((attention, output, Vec::new()));
    }
    for _ in 0..5 {
        for (attention, output, times) in &mut calls {
            times.push(median(cuda, || attention.backward(&q, &k, &v, output, &d_out, None).map(drop))?);
        }
    }
    let backward = report("backward", calls.into_iter().map(|(.., times)| times));
    let of = |((way, call), backward): ((Way, Times), Option<Times>)| Figure {
        workload: name,
        tail: match way.0 {
            Tail::None => "none".to_owned(),
            Tail::Block => "block".to_owned(),
            Tail::Row { keys } => format!("row {keys}"),
            other => format!("{other:?}"),
        },
        scores: format!("{:?}", way.1).to_lowercase(),
        call,
        backward,
    };
    let backward = backward.into_iter().map(Some).chain(std::iter::repeat(None));
    Ok(WAYS.into_iter().zip(forward).zip(backward).map(of).collect())
}

/// Medians with their ranges, and how often each is the first, of the first of [`WAYS`].
fn report(what: &str, calls: impl Iterator<Item = Vec<f32>>) -> Vec<Times> {
    let mut all: Vec<Times> = Vec::new();
    for ((tail, scores), mut times) in WAYS.into_iter().zip(calls) {
        times.sort_by(f32::total_cmp);
        let (median, least, most) = (times[times.len() / 2], times[0], times[times.len() - 1]);
        let times = median / all.first().map_or(median, |first| first.median);
        let way = format!("{tail:?}, {scores:?}");
        println!("  {what:<14} {way:<27} {median:.3} ms ({least:.3} to {most:.3}), {times:.3} times");
        all.push(Times { median, least, most, times });
    }
    all
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

fn median(cuda: &CudaDevice, work: impl Fn() -> Result<(), Error>) -> Result<f32, Error> {
    median_mut(cuda, work)
}

fn median_mut(cuda: &CudaDevice, mut work: impl FnMut() -> Result<(), Error>) -> Result<f32, Error> {
    let mut failure = None;
    let mut once = || {
        cuda.time_ms(|_| {
            if let Err(error) = work() {
                failure = Some(error);
            }
            Ok::<(), DeviceError>(())
        })
    };
    for _ in 0..5 {
        once()?;
    }
    let mut times = (0..LAUNCHES).map(|_| once()).collect::<Result<Vec<f32>, _>>()?;
    if let Some(error) = failure {
        return Err(error);
    }
    times.sort_by(f32::total_cmp);
    Ok(times[LAUNCHES / 2])
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
