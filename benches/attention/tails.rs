//! A user's call and its backward without a tail and with each.

use super::{Error, Workload, median, random};
use serde::Serialize;
use std::time::Instant;
use tilewright::attention::{Inputs, Shapes};
use tilewright::launch::Choice;
use tilewright::services::Policy;
use tilewright::{Attention, DType, Device, HeadDim, Scores, Tail, Tensor, top_k};

const KEPT: f64 = 0.05;
/// By turns; a time is the median of as many medians.
const ROUNDS: usize = 5;
/// What stands for dropped blocks, and what blocks are scored by.
const TAILS: [(&str, Tail, Scores); 8] = [
    ("none", Tail::None, Scores::Means),
    ("block", Tail::Block, Scores::Means),
    ("row 64", Tail::Row { keys: 64 }, Scores::Means),
    ("row 128", Tail::Row { keys: 128 }, Scores::Means),
    ("row 256", Tail::Row { keys: 256 }, Scores::Means),
    ("none, by keys", Tail::None, Scores::Keys),
    ("block, by keys", Tail::Block, Scores::Keys),
    ("row 128, by keys", Tail::Row { keys: 128 }, Scores::Keys),
];

/// What `--json` writes; `benches/render.py` makes tables of it.
#[derive(Serialize)]
pub struct Figures {
    pub version: &'static str,
    pub device: String,
    /// The newest CUDA that the driver knows.
    pub driver: String,
    /// Queries and keys of a block.
    pub block: [usize; 2],
    /// The share of key blocks to keep.
    pub top_k: f64,
    pub launches: usize,
    pub rounds: usize,
    pub workloads: Vec<Measured>,
}

#[derive(Serialize)]
pub struct Measured {
    name: &'static str,
    heads: usize,
    seq: usize,
    d: usize,
    tails: Vec<OfTail>,
}

#[derive(Serialize)]
struct OfTail {
    tail: &'static str,
    call: Times,
    call_parts: Vec<Part>,
    backward: Times,
    backward_parts: Vec<Part>,
}

#[derive(Serialize)]
struct Times {
    ms: f32,
    least_ms: f32,
    most_ms: f32,
}

/// A kernel, and what the tuner measured of it where there was a choice.
#[derive(Serialize)]
struct Part {
    kernel: String,
    us: Option<f64>,
}

impl Figures {
    pub fn new(device: &Device, launches: usize, driver: String) -> Self {
        Figures {
            version: env!("CARGO_PKG_VERSION"),
            device: device.to_string(),
            driver,
            block: [128, 64],
            top_k: KEPT,
            launches,
            rounds: ROUNDS,
            workloads: Vec::new(),
        }
    }
}

/// Measures a workload with every tail by turns, and prints it.
pub fn measure(device: &Device, workload: &Workload) -> Result<Measured, Error> {
    let &Workload { name, heads, seq, d } = workload;
    let cuda = device.as_cuda().expect("a GPU");
    let tensor = |seed| Tensor::from_slice(&random(heads * seq * d, seed), &[1, heads, seq, d])?.to(device);
    let (q, k, v) = (tensor(1)?, tensor(2)?, tensor(3)?);
    let inputs = Inputs { q: &q, k: &k, v: &v };
    let head_dim = HeadDim::new(d)?;
    println!("\n{name}: {heads} heads × {seq} × {d}, top {} %", 100.0 * KEPT);
    let build = |tail, scores| {
        let selection = top_k(KEPT).by(scores);
        let builder = Attention::builder(head_dim, DType::Bf16).select(selection).tail(tail);
        builder.policy(Policy::Tune).build(device)
    };
    let mut calls = Vec::new();
    for (name, tail, scores) in TAILS {
        let start = Instant::now();
        let plan = build(tail, scores)?.plan(Shapes::of(&q, &k)?)?;
        let mut workspace = plan.workspace()?;
        plan.forward_into(inputs, &mut workspace)?;
        println!("  {name}: first call after {:.0?}", start.elapsed());
        let parts = parts(plan.choices());
        calls.push((plan, workspace, parts, Vec::new()));
    }
    for _ in 0..ROUNDS {
        for (plan, workspace, _, times) in &mut calls {
            times.push(median(cuda, || plan.forward_into(inputs, workspace).map(drop))?);
        }
    }
    // Their memory goes back before the backward asks for its own.
    let calls: Vec<_> = calls.into_iter().map(|(_, _, parts, times)| (parts, Times::of(times))).collect();

    let d_out = tensor(4)?;
    let mut backwards = Vec::new();
    for (_, tail, scores) in TAILS {
        let attention = build(tail, scores)?;
        let output = attention.forward(&q, &k, &v)?;
        attention.backward(&q, &k, &v, &output, &d_out, None)?;
        let mut choices = attention.plan(Shapes::of(&q, &k)?)?.choices();
        let backward = ["backward", "tail_gather", "tail_block_", "tail_spread"];
        choices.retain(|choice| backward.iter().any(|kernel| choice.variant.name.starts_with(kernel)));
        let parts = parts(choices);
        backwards.push((attention, output, parts, Vec::new()));
    }
    for _ in 0..ROUNDS {
        for (attention, output, _, times) in &mut backwards {
            times.push(median(cuda, || attention.backward(&q, &k, &v, output, &d_out, None).map(drop))?);
        }
    }
    let tails = TAILS.iter().zip(calls).zip(backwards);
    let tails = tails.map(|((&(tail, ..), (call_parts, call)), (_, _, backward_parts, times))| OfTail {
        tail,
        call,
        call_parts,
        backward: Times::of(times),
        backward_parts,
    });
    let measured = Measured { name, heads, seq, d, tails: tails.collect() };
    measured.print();
    Ok(measured)
}

fn parts(choices: Vec<Choice>) -> Vec<Part> {
    let part = |choice: Choice| {
        let us = choice.record.as_ref().and_then(|record| record.winner()?.median_us());
        println!(
            "    {:<70} {:>10}",
            choice.variant.name,
            us.map_or_else(String::new, |us| format!("{us:.1} µs"))
        );
        Part { kernel: choice.variant.name.clone(), us }
    };
    choices.into_iter().map(part).collect()
}

impl Times {
    fn of(mut times: Vec<f32>) -> Self {
        times.sort_by(f32::total_cmp);
        Times { ms: times[times.len() / 2], least_ms: times[0], most_ms: times[times.len() - 1] }
    }
}

impl Measured {
    fn print(&self) {
        let calls = self.tails.iter().map(|of| ("a user's call", of.tail, &of.call, &self.tails[0].call));
        let backwards =
            self.tails.iter().map(|of| ("backward", of.tail, &of.backward, &self.tails[0].backward));
        for (what, tail, Times { ms, least_ms, most_ms }, plain) in calls.chain(backwards) {
            let times = ms / plain.ms;
            println!("  {what:<14} {tail:<16} {ms:.3} ms ({least_ms:.3} to {most_ms:.3}), {times:.3} times");
        }
    }
}
