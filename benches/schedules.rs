//! The forward kernel's schedules beside each other, where rows keep equally many key blocks and where they do not:
//! `cargo bench --bench schedules [-- FILTER]`.
//!
//! bf16, blocks of 128×64. *Burst*: median of 8 launches after 0.15 s of rest. *Sustained*: median of 80, ten of each
//! schedule in turn. Effective TFLOP/s: 2 · heads · queries · keys of the kept blocks · (d of the keys + d of the values) / time.
//! Uneven: a tenth of the rows, at random places, keeps ten times as many blocks as the others, as many in all as the even rows.

mod support;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUevent_flags;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use support::{draw, random};
use tilewright::codegen::lower::{DeviceFunction, FunctionKind};
use tilewright::device::CudaDevice;
use tilewright::kernels::forward;
use tilewright::launch::{Function, FunctionArgs, Kernel, Request};
use tilewright::{BlockMask, BlockSize, DType, Device, DeviceFn, SeqLens, Tensor, mask_mod};

const BLOCKS: (usize, usize) = (128, 64);

struct Workload {
    name: &'static str,
    heads: usize,
    seq: usize,
    d: usize,
    /// Of the values.
    value_d: usize,
    masks: &'static [Rows],
}

#[derive(Clone, Copy, PartialEq)]
enum Rows {
    Even,
    Uneven,
    Causal,
}

const KEPT: f64 = 0.05;
const PAIR: &[Rows] = &[Rows::Even, Rows::Uneven];

const WORKLOADS: [Workload; 6] = [
    Workload { name: "Wan 480p", heads: 12, seq: 32_760, d: 128, value_d: 128, masks: PAIR },
    Workload { name: "Wan 720p", heads: 10, seq: 75_600, d: 128, value_d: 128, masks: PAIR },
    Workload { name: "CogVideoX", heads: 30, seq: 17_776, d: 64, value_d: 64, masks: PAIR },
    Workload { name: "causal", heads: 16, seq: 8192, d: 128, value_d: 128, masks: &[Rows::Causal] },
    Workload { name: "latent", heads: 16, seq: 32_768, d: 192, value_d: 128, masks: &[Rows::Even] },
    Workload { name: "latent, padded", heads: 16, seq: 32_768, d: 192, value_d: 192, masks: &[Rows::Even] },
];

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    kv <= q
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(reason) => {
            println!("skipped: no GPU ({reason})");
            return Ok(());
        }
    };
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    println!("{device}, bf16, blocks of 128×64, effective TF/s");
    for workload in WORKLOADS.iter().filter(|workload| workload.name.contains(&filter)) {
        let mut even: Option<Vec<Timing>> = None;
        for &rows in workload.masks {
            let timings = run(&device, workload, rows)?;
            for (i, Timing { label, burst, sustained, ms }) in timings.iter().enumerate() {
                let ratio = match &even {
                    Some(even) => format!("   {:.2} of even", burst / even[i].burst),
                    None => String::new(),
                };
                println!("  {label:<78} {ms:>7.3} ms  {burst:>5.0} burst  {sustained:>5.0} sustained{ratio}");
            }
            even = Some(timings);
        }
    }
    Ok(())
}

struct Timing {
    label: String,
    burst: f64,
    sustained: f64,
    /// Of the burst.
    ms: f64,
}

/// One launch that is timed.
struct Entry<'a> {
    kernel: &'a Kernel,
    order: Option<&'a Tensor>,
}

fn run(device: &Device, workload: &Workload, rows: Rows) -> Result<Vec<Timing>, Box<dyn Error>> {
    let &Workload { name, heads, seq, d, value_d, .. } = workload;
    let cuda = device.as_cuda().expect("a GPU");
    let function = causal {};
    let mask = match rows {
        Rows::Causal => BlockMask::from_mask_mod(
            &function,
            1,
            1,
            BlockSize::new(BLOCKS.0, BLOCKS.1)?,
            SeqLens::same(seq),
        )?,
        _ => drawn_mask(heads, seq, rows == Rows::Uneven)?,
    };
    let counts = mask.row_counts()?;
    let order = longest_first(&counts, mask.shape())?.to(device)?;
    let kept: usize = counts.iter().sum::<usize>() * heads / mask.heads();
    let flops = 2.0 * kept as f64 * (BLOCKS.0 * BLOCKS.1 * (d + value_d)) as f64;
    let (least, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
    println!("\n{name}, {heads} heads × {seq} × {d}/{value_d}, rows of {least} to {most} blocks");

    let mut request = Request::new(&forward::SOURCE)
        .value("T", DType::Bf16)
        .value("D", d as i64)
        .value("D_V", value_d as i64)
        .value("BLOCK_Q", BLOCKS.0 as i64)
        .value("BLOCK_KV", BLOCKS.1 as i64);
    if rows == Rows::Causal {
        let parsed = DeviceFunction::from_source(FunctionKind::MaskMod, function.source())?;
        request = request.function("mask_mod", Some(&Arc::new(parsed)));
    }
    let mut kernels = request.load_all(cuda)?;
    let value = |kernel: &Kernel, name| kernel.variant().candidate.constant(name);
    let step = kernels.first().and_then(|kernel| value(kernel, "STEP_KV"));
    // A single team with shorter steps than the preferred ones is known to lose.
    kernels.retain(|kernel| value(kernel, "STEP_KV") == step || value(kernel, "TEAMS") > Some(1));
    let entries: Vec<Entry<'_>> =
        kernels.iter().flat_map(|kernel| [None, Some(&order)].map(|order| Entry { kernel, order })).collect();

    let tensor =
        |d, seed| Tensor::from_slice(&random(heads * seq * d, seed), &[1, heads, seq, d])?.to(device);
    let (q, k, v) = (tensor(d, 1)?, tensor(d, 2)?, tensor(value_d, 3)?);
    let mut out = Tensor::uninit(device, DType::Bf16, v.shape())?;
    let mut lse = Tensor::uninit(device, DType::F32, &[1, heads, seq])?;
    let mask = mask.to(device)?;
    let spec = &kernels[0].variant().candidate.spec;
    let functions =
        FunctionArgs::new(cuda, spec, &[None, (rows == Rows::Causal).then(|| Function::mask(function))])?;
    let mut launch = |entry: &Entry<'_>| {
        let args = forward::Args {
            q: &q,
            k: &k,
            v: &v,
            kv_counts: &mask.kv().counts,
            kv_indices: &mask.kv().indices,
            full_kv_counts: mask.full_kv().map(|full| &full.counts),
            full_kv_indices: mask.full_kv().map(|full| &full.indices),
            row_order: entry.order,
            tail_out: None,
            tail_lse: None,
            tail_k: None,
            tail_v: None,
            tail_weights: None,
            tail_pieces: None,
            out: &mut out,
            lse: &mut lse,
            scale: 1.0 / (d as f32).sqrt(),
        };
        // SAFETY: the lists are those of a mask.
        unsafe { entry.kernel.launch(&args, Some(&functions)) }
    };
    let mut bursts = Vec::new();
    for entry in &entries {
        launch(entry)?;
        cuda.synchronize()?;
        std::thread::sleep(Duration::from_millis(150));
        bursts.push(median(times(cuda, 8, || Ok(launch(entry)?))?));
    }
    let mut sustained = vec![Vec::new(); entries.len()];
    for _ in 0..8 {
        for (entry, sustained) in entries.iter().zip(&mut sustained) {
            sustained.extend(times(cuda, 10, || Ok(launch(entry)?))?);
        }
    }
    let rate = |ms: f64| flops / ms / 1e9;
    Ok((entries.iter().zip(bursts).zip(sustained))
        .map(|((Entry { kernel, order }, ms), sustained)| Timing {
            label: format!("{}, {}", schedule(kernel), order.map_or("no order", |_| "longest first")),
            burst: rate(ms),
            sustained: rate(median(sustained)),
            ms,
        })
        .collect())
}

/// The tuning values.
fn schedule(kernel: &Kernel) -> String {
    let values = kernel.variant().candidate.schedule.values.iter();
    values.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Milliseconds of each of `launches` launches that follow on each other.
fn times(
    cuda: &CudaDevice,
    launches: usize,
    mut launch: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let context = CudaContext::new(cuda.info().ordinal)?;
    // SAFETY: the stream is of this GPU's primary context, and lives as long as the process.
    let stream = unsafe { context.wrap_borrowed_stream(cuda.cu_stream().cast()) };
    let event = || context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    let mut events = vec![event()?];
    events[0].record(&stream)?;
    for _ in 0..launches {
        launch()?;
        let after = event()?;
        after.record(&stream)?;
        events.push(after);
    }
    cuda.synchronize()?;
    events.windows(2).map(|pair| Ok(f64::from(pair[0].elapsed_ms(&pair[1])?))).collect()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Rows that keep `KEPT` of their blocks each, or a tenth of them 10/1.9 times as many and the others 1/1.9.
fn drawn_mask(heads: usize, seq: usize, uneven: bool) -> Result<BlockMask, Box<dyn Error>> {
    let (rows, columns) = (seq.div_ceil(BLOCKS.0), seq.div_ceil(BLOCKS.1));
    let (mut state, kept) = (7, columns as f64 * KEPT);
    let mut map = vec![false; heads * rows * columns];
    for head in map.chunks_mut(rows * columns) {
        let mut long = vec![false; rows];
        draw(&mut long, if uneven { rows / 10 } else { 0 }, &mut state);
        for (row, long) in head.chunks_mut(columns).zip(long) {
            let count = match (uneven, long) {
                (false, _) => kept,
                (true, true) => (10.0 * kept / 1.9).min(columns as f64),
                (true, false) => kept / 1.9,
            };
            draw(row, count.round() as usize, &mut state);
        }
    }
    Ok(BlockMask::from_dense(
        &map,
        [1, heads, rows, columns],
        BlockSize::new(BLOCKS.0, BLOCKS.1)?,
        SeqLens::same(seq),
    )?)
}

/// For each head its query blocks, those with the longest lists first.
fn longest_first(counts: &[usize], [batch, heads, rows, _]: [usize; 4]) -> Result<Tensor, tilewright::Error> {
    let mut order = Vec::with_capacity(counts.len());
    for counts in counts.chunks(rows) {
        let mut of_head: Vec<i32> = (0..rows as i32).collect();
        of_head.sort_by_key(|&row| std::cmp::Reverse(counts[row as usize]));
        order.extend(of_head);
    }
    Tensor::from_slice(&order, &[batch, heads, rows])
}
