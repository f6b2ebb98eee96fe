//! `run`: a user's tensors through sparse attention, one group of heads at a time.

mod layout;

use super::args::{AttentionArgs, TailChoice, describe, describe_scores, describe_tail};
use super::error::CliError;
use super::files::{self, Destination, write_error};
use super::nvrtc;
use super::progress;
use super::report::Report;
use super::source::Source;
use super::table::milliseconds;
use super::tensor_file::{RawTensor, TensorFile, serialize};
use clap::Args;
use layout::{Layout, Sizes, Unit, elements};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Instant;
use tilewright::output::shown;
use tilewright::{Attention, DType, HeadDim, Output, Tail, Tensor};

#[derive(Args)]
pub struct RunArgs {
    /// A safetensors file with q, k and v, f16 or bf16; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    input: Source,
    /// The safetensors file to write: out (as q, with v's last dimension) and lse [batch, heads, seq_q] f32.
    /// `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Destination,
    /// The order of the dimensions: batch, heads, sequence, head dimension, or sequence before heads.
    #[arg(long, value_enum, default_value_t = Layout::Bhsd)]
    layout: Layout,
    /// Write the block mask too: kv_counts [batch, heads, q_blocks] and kv_indices [batch, heads, q_blocks, kv_blocks].
    #[arg(long)]
    mask: bool,
    /// The factor of the products of q and k; 1/sqrt(head dimension) if not given.
    #[arg(long, allow_hyphen_values = true, value_parser = scale)]
    scale: Option<f32>,
    /// What stands for the blocks that are dropped: `block`, `row`, or `row:KEYS` for one mean of so many keys, a multiple of the
    /// block's. `row` alone is 128 keys, or the next multiple. Nothing if not given.
    #[arg(long, value_name = "TAIL", allow_hyphen_values = true)]
    tail: Option<TailChoice>,
    #[command(flatten)]
    attention: AttentionArgs,
}

/// What has been computed, unit after unit.
#[derive(Default)]
struct Results {
    out: Vec<u8>,
    lse: Vec<f32>,
    kv_counts: Vec<i32>,
    kv_indices: Vec<i32>,
    kept: usize,
}

fn scale(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number: &f32| number.is_finite());
    number.ok_or_else(|| "needed a finite number".to_owned())
}

/// The argument that names the output.
const OUTPUT: &str = "--output";

pub fn run(args: &RunArgs, offline: bool) -> Result<Report, CliError> {
    let file = TensorFile::read(&args.input)?;
    let (q, k, v) = (file.half("q")?, file.half("k")?, file.half("v")?);
    let sizes = Sizes::of(&q, &k, &v, args.layout)?;
    let dim = |d| HeadDim::new(d).map_err(tilewright::Error::from);
    let (head_dim, value_dim) = (dim(sizes.d)?, dim(sizes.value_d)?);
    let selection = args.attention.selection();
    let shapes = Shapes::of(&q, &sizes, args)?;
    let output = args.output.open(OUTPUT)?;
    let non_finite = [("q", &q), ("k", &k), ("v", &v)].map(|(name, raw)| (name, raw.non_finite()));
    for remark in non_finite.iter().filter_map(|(name, count)| count.remark(name)) {
        progress::note(&format!("warning: {remark}"));
    }

    let mut device = args.attention.device.open()?;
    if device.is_cuda()
        && let Err(error) = nvrtc::find_or_install(offline)
    {
        let why = error.to_string();
        device = args.attention.device.without_nvrtc(&device, error)?;
        progress::note(&format!("running on the CPU: {why}"));
    }
    let tail = args.tail.map_or(Tail::None, |tail| tail.of(args.attention.block));
    let mut builder = Attention::builder(head_dim, q.dtype)
        .value_dim(value_dim)
        .select(selection)
        .tail(tail)
        .blocks(args.attention.block);
    if let Some(scale) = args.scale {
        builder = builder.scale(scale);
    }
    let attention = builder.build(&device)?;

    let start = Instant::now();
    let results = compute(&attention, [&q, &k, &v], &sizes, &shapes, args)?;
    let ms = start.elapsed().as_secs_f64() * 1e3;

    let blocks = attention.blocks();
    // As real numbers: the product of dimensions, one of which is 0, may be beyond all bounds.
    let total = shapes.lists.iter().map(|&dim| dim as f64).product::<f64>();
    let sparsity = if total == 0.0 { 0.0 } else { 1.0 - results.kept as f64 / total };
    let dtype = if q.dtype == DType::F16 { safetensors::Dtype::F16 } else { safetensors::Dtype::BF16 };
    let (f32s, i32s) = (safetensors::Dtype::F32, safetensors::Dtype::I32);
    let rows = shapes.lists[..3].to_vec();
    let mut tensors = vec![
        ("out", dtype, shapes.out, results.out),
        ("lse", f32s, shapes.lse, le(&results.lse, f32::to_le_bytes)),
    ];
    if args.mask {
        tensors.push(("kv_counts", i32s, rows, le(&results.kv_counts, i32::to_le_bytes)));
        tensors.push(("kv_indices", i32s, shapes.lists, le(&results.kv_indices, i32::to_le_bytes)));
    }
    let names: Vec<&str> = tensors.iter().map(|(name, ..)| *name).collect();
    let tail = describe_tail(tail);
    let mut metadata = BTreeMap::from([
        ("made_by", concat!("tilewright ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("selection", describe(&selection)),
        ("block", format!("{}x{}", blocks.q(), blocks.kv())),
        ("scale", attention.scale().to_string()),
    ]);
    metadata.extend(tail.clone().map(|tail| ("tail", tail)));
    let bytes = serialize(&tensors, &metadata)
        .map_err(|error| write_error(args.output.path(), OUTPUT)(std::io::Error::other(error)))?;
    files::write(output, OUTPUT, &bytes)?;

    let text = format!(
        "{}: {} written\n{} batch × {} heads, {} queries × {} keys, d {}, {}; {blocks} blocks, {}{}\n\
         {:.1} % of the blocks dropped; {} on {device}, transfers included\n",
        shown(args.output.path()),
        names.join(", "),
        sizes.batch,
        sizes.heads,
        sizes.seq_q,
        sizes.seq_kv,
        sizes.d,
        q.dtype,
        describe(&selection),
        tail.as_ref().map_or(String::new(), |tail| format!(", tail {tail}")),
        100.0 * sparsity,
        milliseconds(ms),
    );
    let json = json!({
        "input": args.input.path().to_string_lossy(),
        "output": args.output.path().to_string_lossy(),
        "tensors": names,
        "device": device.to_string(),
        "batch": sizes.batch,
        "heads": sizes.heads,
        "kv_heads": sizes.kv_heads,
        "seq_q": sizes.seq_q,
        "seq_kv": sizes.seq_kv,
        "head_dim": sizes.d,
        "value_dim": sizes.value_d,
        "dtype": q.dtype,
        "top_k": selection.k(),
        "top_p": selection.p(),
        "scores": describe_scores(selection.scores()),
        "tail": tail,
        "block": [blocks.q(), blocks.kv()],
        "sparsity": sparsity,
        "non_finite": BTreeMap::from(non_finite),
        "total_ms": ms,
    });
    Ok(Report::new(text, &json))
}

/// The shapes of the results, known to fit the memory's addresses.
struct Shapes {
    /// That of q, with the last dimension of v.
    out: Vec<usize>,
    lse: Vec<usize>,
    /// Batch, heads, query blocks, key blocks.
    lists: Vec<usize>,
}

impl Shapes {
    fn of(q: &RawTensor<'_>, sizes: &Sizes, args: &RunArgs) -> Result<Self, CliError> {
        let block = args.attention.block;
        let (q_blocks, kv_blocks) = (sizes.seq_q.div_ceil(block.q()), sizes.seq_kv.div_ceil(block.kv()));
        let out = [&q.shape[..3], &[sizes.value_d]].concat();
        let lse = vec![sizes.batch, sizes.heads, sizes.seq_q];
        let lists = vec![sizes.batch, sizes.heads, q_blocks, kv_blocks];
        for (shape, dtype) in [(&out, q.dtype), (&lse, DType::F32), (&lists, DType::I32)] {
            elements(shape, dtype)?;
        }
        Ok(Shapes { out, lse, lists })
    }
}

/// Attention unit by unit: the query heads that share a key head, of one batch entry. Memory on the device stays
/// small, and the bar moves.
fn compute(
    attention: &Attention,
    [q, k, v]: [&RawTensor<'_>; 3],
    sizes: &Sizes,
    shapes: &Shapes,
    args: &RunArgs,
) -> Result<Results, CliError> {
    let (device, layout) = (attention.device(), args.layout);
    let out = vec![0; elements(&shapes.out, q.dtype)? * q.dtype.size()];
    let mut results = Results { out, ..Results::default() };
    let units = sizes.units();
    let bar = progress::bar(units.len(), "heads");
    for Unit { batch, kv_head } in units {
        let heads = kv_head * sizes.group()..(kv_head + 1) * sizes.group();
        let take = |raw: &RawTensor<'_>, seq, heads: std::ops::Range<usize>| -> Result<Tensor, CliError> {
            let shape = [1, heads.len(), seq, raw.shape[3]];
            let bytes = layout.gather(raw, batch, heads);
            Ok(Tensor::from_bytes(raw.dtype, &bytes, &shape)?.to(device)?)
        };
        let q_unit = take(q, sizes.seq_q, heads.clone())?;
        let k_unit = take(k, sizes.seq_kv, kv_head..kv_head + 1)?;
        let v_unit = take(v, sizes.seq_kv, kv_head..kv_head + 1)?;
        let Output { out, lse, mask } = attention.forward(&q_unit, &k_unit, &v_unit)?;
        layout.scatter(&bytes_of(&out)?, &mut results.out, &shapes.out, batch, heads);
        results.lse.extend(lse.to_vec::<f32>()?);
        if args.mask {
            results.kv_counts.extend(mask.kv().counts.to_vec::<i32>()?);
            results.kv_indices.extend(mask.kv().indices.to_vec::<i32>()?);
        }
        results.kept += mask.kept_blocks()?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(results)
}

/// The elements of a half-precision tensor, row-major, as a file holds them.
fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>, CliError> {
    Ok(match tensor.dtype() {
        tilewright::DType::F16 => le(&tensor.to_vec::<half::f16>()?, half::f16::to_le_bytes),
        _ => le(&tensor.to_vec::<half::bf16>()?, half::bf16::to_le_bytes),
    })
}

fn le<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}
