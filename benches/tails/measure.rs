//! What a layer's attention is off by, and how long it takes.

use super::Options;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;
use std::path::Path;
use std::time::Instant;
use tilewright::attention::{Inputs, Plan, Shapes, Workspace};
use tilewright::device::DeviceError;
use tilewright::{
    Attention, BlockMask, BlockSize, DType, Device, HeadDim, Scores, SeqLens, Tail, Tensor, TokenGrid, top_k,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What stands for dropped blocks, and what blocks are scored by.
const TAILS: [(&str, Tail, Scores); 6] = [
    ("none", Tail::None, Scores::Means),
    ("block", Tail::Block, Scores::Means),
    ("row 64", Tail::Row { keys: 64 }, Scores::Means),
    ("row 128", Tail::Row { keys: 128 }, Scores::Means),
    ("block, by keys", Tail::Block, Scores::Keys),
    ("row 128, by keys", Tail::Row { keys: 128 }, Scores::Keys),
];

/// All that was measured.
#[derive(Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    pub device: String,
    /// Queries and keys of a block.
    pub block: [usize; 2],
    /// Calls that a time is the median of.
    pub calls: usize,
    pub copies: usize,
    pub panels: Vec<Panel>,
}

/// One layer in one order of its tokens.
#[derive(Serialize, Deserialize)]
pub struct Panel {
    pub name: String,
    pub order: String,
    /// Batch, heads, tokens, head dimension: of what is timed.
    pub shape: Vec<usize>,
    /// Attention over all blocks.
    pub dense_ms: f64,
    pub lines: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
pub struct Line {
    pub tail: String,
    pub points: Vec<Point>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Point {
    pub top_k: f64,
    /// The share of blocks that are kept.
    pub kept: f64,
    /// Relative L1 against dense attention, the mean over the heads.
    pub error: f64,
    /// The median, the least and the most.
    pub ms: f64,
    pub least_ms: f64,
    pub most_ms: f64,
}

impl Report {
    pub fn new(device: &Device, copies: usize) -> Self {
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: device.to_string(),
            block: [128, 64],
            calls: calls(device),
            copies,
            panels: Vec::new(),
        }
    }
}

fn calls(device: &Device) -> usize {
    if device.is_cuda() { 30 } else { 3 }
}

/// q, k and v of a layer, on the CPU.
pub struct Layer {
    name: String,
    qkv: [Tensor; 3],
    grid: Option<[usize; 3]>,
}

/// An order of the tokens: the grid that makes cubes, or raster order.
pub type Order = Option<TokenGrid>;

impl Layer {
    /// `files`: paths with commas between, and a name before them or the files' own.
    pub fn read(files: &str) -> Result<Self> {
        let (name, files) = files.split_once('=').map_or((None, files), |(name, files)| (Some(name), files));
        let mut found: [Option<Tensor>; 3] = [None, None, None];
        let (mut names, mut grid) = (Vec::new(), None);
        for path in files.split(',') {
            let bytes = std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
            let file = SafeTensors::deserialize(&bytes).map_err(|error| format!("{path}: {error}"))?;
            for (name, tensor) in ["q", "k", "v"].iter().zip(&mut found) {
                let Ok(view) = file.tensor(name) else { continue };
                let dtype = match view.dtype() {
                    safetensors::Dtype::F16 => DType::F16,
                    safetensors::Dtype::BF16 => DType::Bf16,
                    other => return Err(format!("{path}: {name} is {other:?}, needed f16 or bf16").into()),
                };
                *tensor = Some(Tensor::from_bytes(dtype, view.data(), view.shape())?);
            }
            let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
            let said = metadata.metadata().as_ref().and_then(|facts| facts.get("token_grid"));
            grid = grid.or(said.and_then(|text| super::sides(text).ok()));
            names.push(Path::new(path).file_stem().unwrap_or_default().to_string_lossy().into_owned());
        }
        let [Some(q), Some(k), Some(v)] = found else {
            return Err(format!("{files} has not all of q, k and v").into());
        };
        Ok(Layer { name: name.map_or_else(|| names.join("+"), str::to_owned), qkv: [q, k, v], grid })
    }

    /// Raster order, and cubes where the grid is known.
    pub fn orders(&self, grid: Option<[usize; 3]>, tile: [usize; 3]) -> Result<Vec<Order>> {
        let cubes = grid.or(self.grid).map(|grid| TokenGrid::builder(grid).tile(tile).build()).transpose()?;
        Ok([None].into_iter().chain(cubes.map(Some)).collect())
    }
}

/// An attention with memory of its own.
struct Call {
    plan: Plan,
    workspace: Workspace,
    times: Vec<f64>,
}

/// Measures a layer in an order of its tokens.
pub fn panel(layer: &Layer, order: Order, options: &Options, device: &Device) -> Result<Panel> {
    let [q, k, v] = &layer.qkv;
    let ready = |tensor: &Tensor| -> Result<Tensor> {
        let copies = copied(tensor, options.copies)?.to(device)?;
        Ok(match &order {
            Some(grid) => grid.regroup(&copies)?,
            None => copies,
        })
    };
    let [q, k, v] = [ready(q)?, ready(k)?, ready(v)?];
    let shape = q.shape().to_vec();
    let builder = || Ok::<_, Box<dyn Error>>(Attention::builder(HeadDim::new(shape[3])?, q.dtype()));
    let blocks = BlockSize::default();
    let full = BlockMask::full(1, 1, blocks, SeqLens { q: shape[2], kv: k.shape()[2] })?.to(device)?;
    let dense = builder()?.build(device)?;
    let heads = shape[1] * layer.qkv[0].shape()[0];
    let (exact, _) = dense.attend_with(&q, &k, &v, &full)?;
    let exact = first_heads(&exact, heads)?;
    let mut dense_ms = Vec::new();
    for _ in 0..calls(device) {
        dense_ms.push(time_ms(device, || dense.attend_with(&q, &k, &v, &full).map(drop))?);
    }

    let mut lines = TAILS.map(|(tail, ..)| Line { tail: tail.to_owned(), points: Vec::new() });
    for &share in &options.top_k {
        let inputs = Inputs { q: &q, k: &k, v: &v };
        let mut calls_of = Vec::new();
        for (_, tail, scores) in TAILS {
            let attention = builder()?.select(top_k(share).by(scores)).tail(tail).build(device)?;
            let plan = attention.plan(Shapes::of(&q, &k)?)?;
            let mut call = Call { workspace: plan.workspace()?, plan, times: Vec::new() };
            call.plan.forward_into(inputs, &mut call.workspace)?;
            calls_of.push(call);
        }
        // The first round warms up.
        for round in 0..=calls(device) {
            for Call { plan, workspace, times } in &mut calls_of {
                let ms = time_ms(device, || plan.forward_into(inputs, workspace).map(drop))?;
                if round > 0 {
                    times.push(ms);
                }
            }
        }
        for (line, Call { plan, mut workspace, mut times }) in lines.iter_mut().zip(calls_of) {
            let output = plan.forward_into(inputs, &mut workspace)?;
            times.sort_by(f64::total_cmp);
            line.points.push(Point {
                top_k: share,
                kept: 1.0 - output.mask.sparsity()?,
                error: error(&first_heads(&output.out, heads)?, &exact),
                ms: times[times.len() / 2],
                least_ms: times[0],
                most_ms: times[times.len() - 1],
            });
        }
    }
    let order = order.map_or("raster".to_owned(), |grid| {
        let [t, h, w] = grid.tile();
        format!("cubes {t}×{h}×{w}")
    });
    let dense_ms = median(dense_ms);
    Ok(Panel { name: layer.name.clone(), order, shape, dense_ms, lines: lines.into() })
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The tensor as often along the batch.
fn copied(tensor: &Tensor, copies: usize) -> Result<Tensor> {
    if copies == 1 {
        return Ok(tensor.clone());
    }
    let shape = [&[tensor.shape()[0] * copies], &tensor.shape()[1..]].concat();
    Ok(match tensor.dtype() {
        DType::F16 => Tensor::from_slice(&tensor.to_vec::<half::f16>()?.repeat(copies), &shape)?,
        _ => Tensor::from_slice(&tensor.to_vec::<half::bf16>()?.repeat(copies), &shape)?,
    })
}

/// The first heads of an output, each by itself: copies of them have the same error.
fn first_heads(out: &Tensor, heads: usize) -> Result<Vec<Vec<f32>>> {
    let of_a_head = out.shape()[2] * out.shape()[3];
    Ok(out.to_f32_vec()?.chunks(of_a_head).take(heads).map(<[f32]>::to_vec).collect())
}

/// `‖found − exact‖₁ / ‖exact‖₁`, the mean over the heads.
fn error(found: &[Vec<f32>], exact: &[Vec<f32>]) -> f64 {
    let of_a_head = |(found, exact): (&Vec<f32>, &Vec<f32>)| {
        let apart: f64 = found.iter().zip(exact).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).sum();
        apart / exact.iter().map(|x| f64::from(x.abs())).sum::<f64>()
    };
    found.iter().zip(exact).map(of_a_head).sum::<f64>() / exact.len() as f64
}

fn time_ms(
    device: &Device,
    mut work: impl FnMut() -> std::result::Result<(), tilewright::Error>,
) -> Result<f64> {
    let Some(cuda) = device.as_cuda() else {
        let start = Instant::now();
        work()?;
        return Ok(start.elapsed().as_secs_f64() * 1e3);
    };
    let mut result = Ok(());
    let ms = cuda.time_ms(|_| {
        result = work();
        Ok::<(), DeviceError>(())
    })?;
    result?;
    Ok(f64::from(ms))
}

impl fmt::Display for Panel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Panel { name, order, shape, dense_ms, lines } = self;
        writeln!(f, "\n{name}, {order}, {shape:?}: dense {dense_ms:.3} ms; error and time of a call")?;
        write!(f, "  {:>6} {:>7}", "top-k", "kept")?;
        for line in lines {
            write!(f, "  {:>19}", line.tail)?;
        }
        for (at, first) in lines[0].points.iter().enumerate() {
            write!(f, "\n  {:>6} {:>5.1} %", first.top_k, 100.0 * first.kept)?;
            for Point { error, ms, .. } in lines.iter().map(|line| &line.points[at]) {
                write!(f, "  {error:>6.3} {ms:>9.3} ms")?;
            }
        }
        Ok(())
    }
}
