//! How the forward's tiles get to the blocks of a persistent grid: rows of uneven length, orders of rows, launches that
//! overlap, graphs. Whoever computes a row, the bits are the same.

use super::Test;
use super::support::Random;
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use libtest_mimic::Failed;
use tilewright::device::CudaDevice;
use tilewright::kernels::{forward, order};
use tilewright::launch::{FunctionArgs, Kernel, Request, load};
use tilewright::reference::{attention_f64, largest_difference, relative_error};
use tilewright::{BlockMask, BlockSize, DType, Device, SeqLens, Tensor};

pub const TESTS: &[Test] = &[
    ("tiles::rows_of_uneven_length", uneven_rows),
    ("tiles::an_order_changes_no_bit", orders),
    ("tiles::numbers_that_are_no_row", no_rows),
    ("tiles::the_order_of_any_lists", orders_of_lists),
    ("tiles::two_streams_at_once", two_streams),
    ("tiles::a_graph_beside_its_stream", graph),
];

/// Tiles of 128 rows for more than one round of any GPU's multiprocessors.
const SHAPE: [usize; 4] = [2, 12, 2900, 64];
const SCALE: f32 = 0.125;

/// Inputs on the GPU and a mask of rows between empty and full.
struct Inputs {
    blocks: BlockSize,
    host: [Tensor; 3],
    device: [Tensor; 3],
    mask: BlockMask,
}

impl Inputs {
    fn new(device: &Device, blocks: BlockSize, seed: u64) -> Result<Self, Failed> {
        let [batch, heads, seq, _] = SHAPE;
        let mut random = Random(seed);
        let host = [(); 3].map(|()| random.tensor(DType::Bf16, &SHAPE));
        let (rows, columns) = (seq.div_ceil(blocks.q()), seq.div_ceil(blocks.kv()));
        let mut map = Vec::with_capacity(batch * heads * rows * columns);
        for _ in 0..batch * heads * rows {
            // A few rows long, most short, some empty.
            let kept = [0.0, 0.04, 0.04, 0.04, 0.04, 0.04, 0.1, 0.9][random.bits() as usize % 8];
            map.extend((0..columns).map(|_| random.chance(kept)));
        }
        let mask = BlockMask::from_dense(&map, [batch, heads, rows, columns], blocks, SeqLens::same(seq))?;
        let [q, k, v] = &host;
        let device_tensors = [q.to(device)?, k.to(device)?, v.to(device)?];
        Ok(Inputs { blocks, host, device: device_tensors, mask: mask.to(device)? })
    }

    fn request(&self) -> Request {
        Request::new(&forward::SOURCE)
            .value("T", DType::Bf16)
            .value("D", SHAPE[3] as i64)
            .value("BLOCK_Q", self.blocks.q() as i64)
            .value("BLOCK_KV", self.blocks.kv() as i64)
    }

    fn launch(
        &self,
        cuda: &CudaDevice,
        kernel: &Kernel,
        order: Option<&Tensor>,
        outputs: &mut Outputs,
    ) -> Result<(), Failed> {
        let [q, k, v] = &self.device;
        let args = forward::Args {
            q,
            k,
            v,
            kv_counts: &self.mask.kv().counts,
            kv_indices: &self.mask.kv().indices,
            full_kv_counts: None,
            full_kv_indices: None,
            row_order: order,
            tail_out: None,
            tail_lse: None,
            tail_k: None,
            tail_v: None,
            tail_weights: None,
            tail_pieces: None,
            out: &mut outputs.out,
            lse: &mut outputs.lse,
            scale: SCALE,
        };
        let functions = FunctionArgs::new(cuda, &kernel.variant().candidate.spec, &[None, None])?;
        // SAFETY: lists and orders may hold anything; the outputs live until the stream is waited for.
        Ok(unsafe { kernel.launch(&args, Some(&functions)) }?)
    }

    /// The bits of one launch into poisoned outputs.
    fn bits(&self, device: &Device, kernel: &Kernel, order: Option<&Tensor>) -> Result<Bits, Failed> {
        let mut outputs = Outputs::new(device)?;
        self.launch(cuda(device), kernel, order, &mut outputs)?;
        outputs.bits()
    }

    /// Query blocks of a head.
    fn rows(&self) -> usize {
        SHAPE[2].div_ceil(self.blocks.q())
    }
}

struct Outputs {
    out: Tensor,
    lse: Tensor,
}

type Bits = [Vec<u32>; 2];

impl Outputs {
    /// Poisoned: what a launch leaves out is a NaN.
    fn new(device: &Device) -> Result<Self, Failed> {
        let out = Tensor::uninit(device, DType::Bf16, &SHAPE)?;
        let mut outputs = Outputs { out, lse: Tensor::uninit(device, DType::F32, &SHAPE[..3])? };
        outputs.poison(device)?;
        Ok(outputs)
    }

    fn poison(&mut self, device: &Device) -> Result<(), Failed> {
        self.out.fill_bytes(0xFF)?;
        self.lse.fill_bytes(0xFF)?;
        // Launches on other streams come after it.
        Ok(cuda(device).synchronize()?)
    }

    fn bits(&self) -> Result<Bits, Failed> {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        Ok([bits(self.out.to_f32_vec()?), bits(self.lse.to_vec::<f32>()?)])
    }
}

fn cuda(device: &Device) -> &CudaDevice {
    device.as_cuda().expect("these tests run on a GPU")
}

/// Every schedule against the f64 oracle; the second launch finds the counter as the first did.
fn uneven_rows(device: &Device) -> Result<(), Failed> {
    for blocks in [BlockSize::ALL[0], BlockSize::new(64, 64)?] {
        let inputs = Inputs::new(device, blocks, 211)?;
        let [q, k, v] = &inputs.host;
        let mask = inputs.mask.to(&Device::cpu())?;
        let expected = attention_f64(q, k, v, &mask, SCALE, None, None)?;
        for kernel in inputs.request().load_all(cuda(device))? {
            let name = &kernel.variant().name;
            let mut outputs = Outputs::new(device)?;
            inputs.launch(cuda(device), &kernel, None, &mut outputs)?;
            let error = relative_error(&outputs.out.to_f32_vec()?, &expected.out);
            let lse_error = largest_difference(&outputs.lse.to_vec::<f32>()?, &expected.lse);
            println!("{name}: out {error:.2e}, lse {lse_error:.2e}");
            if !(error <= 4e-3 && lse_error <= 1e-3) {
                return Err(format!("{name}: out {error:.2e}, lse {lse_error:.2e}").into());
            }
            if inputs.bits(device, &kernel, None)? != outputs.bits()? {
                return Err(format!("{name}: two launches differ").into());
            }
        }
    }
    Ok(())
}

/// An order for each head and one for all of them.
fn orders(device: &Device) -> Result<(), Failed> {
    let inputs = Inputs::new(device, BlockSize::ALL[0], 223)?;
    let kernel = load(cuda(device), &[inputs.request()])?.remove(0);
    let expected = inputs.bits(device, &kernel, None)?;
    let mut random = Random(227);
    for [batch, heads] in [[SHAPE[0], SHAPE[1]], [1, SHAPE[1]], [1, 1]] {
        let rows = inputs.rows();
        let mut order = Vec::with_capacity(batch * heads * rows);
        for _ in 0..batch * heads {
            let mut of_head: Vec<i32> = (0..rows as i32).collect();
            of_head.sort_by_cached_key(|_| random.bits());
            order.extend(of_head);
        }
        let order = Tensor::from_slice(&order, &[batch, heads, rows])?.to(device)?;
        if inputs.bits(device, &kernel, Some(&order))? != expected {
            return Err(format!("{batch} × {heads} orders: other bits").into());
        }
    }
    Ok(())
}

/// They are taken for the nearest row: nothing outside the tensors is read or written, and other rows are right.
fn no_rows(device: &Device) -> Result<(), Failed> {
    let inputs = Inputs::new(device, BlockSize::ALL[0], 229)?;
    let rows = inputs.rows();
    let mut order: Vec<i32> = (0..rows as i32).collect();
    order[3] = -7;
    order[rows - 2] = i32::MAX;
    let order = Tensor::from_slice(&order, &[1, 1, rows])?.to(device)?;
    for kernel in inputs.request().load_all(cuda(device))? {
        let expected = inputs.bits(device, &kernel, None)?;
        let found = inputs.bits(device, &kernel, Some(&order))?;
        let d = SHAPE[3];
        for (row, (found, expected)) in found[0].chunks(d).zip(expected[0].chunks(d)).enumerate() {
            let block = row % SHAPE[2] / inputs.blocks.q();
            let left_out = block == 3 || block == rows - 2;
            // A body may do without the order: then nothing is left out.
            if found != expected && !left_out {
                return Err(format!("{}: row {row} is wrong", kernel.variant().name).into());
            }
        }
    }
    Ok(())
}

/// The same kernel twice at once: one must not take the other's tiles.
fn two_streams(device: &Device) -> Result<(), Failed> {
    let here = cuda(device);
    let both = [Inputs::new(device, BlockSize::ALL[0], 233)?, Inputs::new(device, BlockSize::ALL[0], 239)?];
    let context = CudaContext::new(here.info().ordinal)?;
    let streams = [context.new_stream()?, context.new_stream()?];
    // SAFETY: the streams are of this GPU's context and outlive what is made on them; each round ends with a wait.
    let on = streams.each_ref().map(|stream| unsafe { here.on_stream(stream.cu_stream().cast()) });
    let mut kernels = Vec::new();
    for on in &on {
        kernels.push(load(on, &[both[0].request()])?.remove(0));
    }
    let mut expected = Vec::new();
    for (inputs, kernel) in both.iter().zip(&kernels) {
        let mut outputs = Outputs::new(device)?;
        inputs.launch(here, kernel, None, &mut outputs)?;
        context.synchronize()?;
        expected.push(outputs.bits()?);
    }
    for round in 0..20 {
        let mut outputs = [Outputs::new(device)?, Outputs::new(device)?];
        // Several a stream, so that they overlap.
        for _ in 0..4 {
            for ((inputs, kernel), outputs) in both.iter().zip(&kernels).zip(&mut outputs) {
                inputs.launch(here, kernel, None, outputs)?;
            }
        }
        for stream in &streams {
            stream.synchronize()?;
        }
        for (outputs, expected) in outputs.iter().zip(&expected) {
            if outputs.bits()? != *expected {
                return Err(format!("round {round}: launches beside each other give other bits").into());
            }
        }
    }
    Ok(())
}

/// A captured launch is replayed beside launches on the stream it was captured from.
fn graph(device: &Device) -> Result<(), Failed> {
    let here = cuda(device);
    let inputs = Inputs::new(device, BlockSize::ALL[0], 241)?;
    let context = CudaContext::new(here.info().ordinal)?;
    let (stream, other) = (context.new_stream()?, context.new_stream()?);
    // SAFETY: as above.
    let on = unsafe { here.on_stream(stream.cu_stream().cast()) };
    let kernel = load(&on, &[inputs.request()])?.remove(0);
    let mut captured = Outputs::new(device)?;
    let mut beside = Outputs::new(device)?;
    inputs.launch(here, &kernel, None, &mut beside)?;
    stream.synchronize()?;
    let expected = beside.bits()?;

    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    inputs.launch(here, &kernel, None, &mut captured)?;
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags)?.ok_or("nothing was captured")?;
    for round in 0..20 {
        captured.poison(device)?;
        beside.poison(device)?;
        for _ in 0..3 {
            // SAFETY: the graph and the stream are alive, and of one context.
            unsafe { cudarc::driver::result::graph::launch(graph.cu_graph_exec(), other.cu_stream()) }?;
            inputs.launch(here, &kernel, None, &mut beside)?;
        }
        other.synchronize()?;
        stream.synchronize()?;
        if captured.bits()? != expected || beside.bits()? != expected {
            return Err(format!("replay {round} gives other bits").into());
        }
    }
    Ok(())
}

/// The kernel that orders rows, against the counts on the host: one row, more rows than threads, many heads, empty rows, equal
/// ones, lists of full blocks beside the others, counts that are none, more blocks than it tells apart.
fn orders_of_lists(device: &Device) -> Result<(), Failed> {
    let kernel = load(cuda(device), &[Request::new(&order::SOURCE)])?.remove(0);
    let mut random = Random(5);
    let shapes = [
        ([1, 1, 1], 1),
        ([1, 1, 2], 7),
        ([1, 40, 37], 75),
        ([2, 3, 591], 1182),
        ([1, 2, 1500], 900),
        ([1, 1, 700], 5000),
    ];
    for (shape, longest) in shapes {
        for (kind, split) in
            ["even", "uneven", "empty", "wild"].iter().flat_map(|kind| [(kind, false), (kind, true)])
        {
            let number: usize = shape.iter().product();
            let mut draw = || -> Vec<i32> {
                let count = |random: &mut Random| match *kind {
                    "even" => longest / 2,
                    "empty" => 0,
                    "wild" => [i32::MIN, -1, i32::MAX, longest][random.bits() as usize % 4],
                    _ => (random.bits() % (longest as u32 + 1)) as i32,
                };
                (0..number).map(|_| count(&mut random)).collect()
            };
            let (counts, full) = (draw(), split.then(&mut draw));
            let to = |counts: &[i32]| Tensor::from_slice(counts, &shape)?.to(device);
            let (on_gpu, full_on_gpu) = (to(&counts)?, full.as_deref().map(to).transpose()?);
            let mut row_order = Tensor::uninit(device, DType::I32, &shape)?;
            row_order.fill_bytes(0xFF)?;
            let args = order::Args {
                counts: &on_gpu,
                full_counts: full_on_gpu.as_ref(),
                row_order: &mut row_order,
                longest,
            };
            // SAFETY: any counts will do.
            unsafe { kernel.launch(&args, None)? };
            // The bin of a length, of the kernel's 1 024. It divides in f32, and nearly right: a length at the edge of two bins may be in
            // either, so the lowest and the highest are asked for.
            let bin = |row: usize, slightly: f64| {
                let length = |counts: &[i32]| f64::from(counts[row].max(0));
                let length = length(&counts) + full.as_deref().map_or(0.0, length);
                (((length + 0.5) * 1024.0 / (f64::from(longest) + 1.0) * slightly) as i64).min(1023)
            };
            let found = row_order.to_vec::<i32>()?;
            for (head, rows) in found.chunks(shape[2]).enumerate() {
                let at = |row: i32| head * shape[2] + row as usize;
                let mut sorted = rows.to_vec();
                sorted.sort_unstable();
                let is_order = sorted.iter().copied().eq(0..shape[2] as i32);
                let mut lowest = i64::MAX;
                let falls = rows.iter().all(|&row| {
                    lowest = lowest.min(bin(at(row), 1.0 + 1e-6));
                    bin(at(row), 1.0 - 1e-6) <= lowest
                });
                if !is_order || !falls {
                    return Err(format!("{shape:?}, {kind}, split {split}, head {head}: {rows:?}").into());
                }
            }
        }
    }
    Ok(())
}
