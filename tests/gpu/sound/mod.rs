//! What safe code must not be able to do, whatever it passes: write outside its outputs, alias them, run another kernel in a kernel's
//! stead, move the caller's current GPU, break another thread's capture.

pub mod beside;
pub mod captures;
pub mod guarded;

use super::Test;
use super::support::Random;
use cudarc::driver::result::ctx::get_current;
use guarded::{Guarded, Place};
use libtest_mimic::Failed;
use tilewright::attention::{Attend, Backward, Forward, Inputs, MaskLists, Select, Shapes};
use tilewright::codegen::KernelSource;
use tilewright::device::CudaDevice;
use tilewright::kernels::{order, score};
use tilewright::launch::{BindError, Request, load};
use tilewright::toolchain::Toolchain;
use tilewright::{Attention, DType, Device, Error, Gradients, HeadDim, Tensor, TokenGrid, mask_mod, top_k};

pub const TESTS: &[Test] = &[
    ("sound::a_longest_below_zero", longest),
    ("sound::a_kernel_of_the_same_name", same_name),
    ("sound::clones_as_outputs_are_refused", clones),
    ("sound::overlapping_memory_is_refused", overlapping),
    ("sound::the_threads_gpu_comes_back", current_gpu),
];

/// The scalar beside the tensors is a caller's: below 0, all rows are alike, and the order is one of them all.
fn longest(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let kernel = load(cuda, &[Request::new(&order::SOURCE)])?.remove(0);
    let shape = [2, 3, 700];
    let counts: Vec<i32> = (0..4200).map(|i| [i32::MIN, -1, 0, 1, 90, i32::MAX][i % 6]).collect();
    let counts = Tensor::from_slice(&counts, &shape)?.to(device)?;
    for longest in [i32::MIN, -1025, -1, 0, 1, i32::MAX] {
        let mut row_order = Guarded::new(cuda, Place::External, DType::I32, &shape)?;
        let args = order::Args {
            counts: &counts,
            full_counts: Some(&counts),
            row_order: &mut row_order.tensor,
            longest,
        };
        // SAFETY: any counts will do, and any longest: that is what is tried here, between guards.
        unsafe { kernel.launch(&args, None) }?;
        cuda.synchronize()?;
        row_order.check(cuda, "row_order")?;
        for (head, rows) in row_order.tensor.to_vec::<i32>()?.chunks(shape[2]).enumerate() {
            let mut rows = rows.to_vec();
            rows.sort_unstable();
            if !rows.into_iter().eq(0..shape[2] as i32) {
                return Err(format!("longest {longest}, head {head}: not each row once").into());
            }
        }
    }
    Ok(())
}

/// Two crates may have kernels of one name whose parameters have one size.
fn same_name(device: &Device) -> Result<(), Failed> {
    let mut other: KernelSource = score::SOURCE.clone();
    other.declaration = other.declaration.replace("head_dim % 4 == 0", "head_dim % 2 == 0").into();
    if other.declaration == score::SOURCE.declaration {
        return Err("the declaration has no such requirement any more".into());
    }
    let other: &'static KernelSource = Box::leak(Box::new(other));
    let cuda = device.as_cuda().unwrap();
    let kernel = load(cuda, &[Request::new(other)])?.remove(0);
    let means = Tensor::zeros_on(device, DType::F32, &[1, 1, 4, 64])?;
    let mut logits = Tensor::zeros_on(device, DType::F32, &[1, 1, 4, 4])?;
    let args = score::Args { q_mean: &means, k_mean: &means, logits: &mut logits, scale: 1.0 };
    // SAFETY: it asks for nothing that the checks do not see.
    match unsafe { kernel.launch(&args, None) } {
        Err(Error::Bind(BindError::Candidate { kernel: "score", .. })) => Ok(()),
        other => Err(format!("{other:?} instead of a refusal").into()),
    }
}

fn clones(device: &Device) -> Result<(), Failed> {
    let kernel = load(device.as_cuda().unwrap(), &[Request::new(&score::SOURCE)])?.remove(0);
    // 64 blocks of 64: the means have the shape of their logits.
    let [means, more] = [(); 2].map(|()| Tensor::zeros_on(device, DType::F32, &[1, 1, 64, 64]));
    let (means, more) = (means?, more?);
    let mut logits = means.clone();
    let args = score::Args { q_mean: &more, k_mean: &means, logits: &mut logits, scale: 1.0 };
    // SAFETY: it asks for nothing that the checks do not see.
    match unsafe { kernel.launch(&args, None) } {
        Err(Error::Bind(BindError::Aliased { arg: "k_mean", written: "logits", .. })) => Ok(()),
        other => Err(format!("{other:?} instead of BindError::Aliased").into()),
    }
}

const SHAPE: [usize; 4] = [1, 4, 300, 64];

fn attention(device: &Device) -> Result<Attention, Failed> {
    Ok(Attention::builder(HeadDim::D64, DType::F16).select(top_k(0.5)).build(device)?)
}

fn inputs(device: &Device) -> Result<[Tensor; 3], Failed> {
    let mut random = Random(307);
    let mut tensor = || random.tensor(DType::F16, &SHAPE).to(device);
    Ok([tensor()?, tensor()?, tensor()?])
}

/// One buffer for everything: whatever two arguments begin at one address, a call that writes one of them is refused.
fn overlapping(device: &Device) -> Result<(), Failed> {
    let cuda = device.as_cuda().unwrap();
    let attention = attention(device)?;
    let [q, k, v] = inputs(device)?;
    let output = attention.forward(&q, &k, &v)?;
    let (plan, [k, v]) = (attention.plan(Shapes::of(&q, &k)?)?, [&k, &v]);
    let rows = &SHAPE[..3];
    let buffer = cuda.zeroed(64 << 20)?;
    let ordinal = cuda.info().ordinal;
    let at = |place: u64, dtype: DType, shape: &[usize]| {
        let strides = tilewright::Tensor::contiguous_strides(shape);
        // SAFETY: the buffer is large enough for all of them, and outlives the calls.
        unsafe {
            Tensor::from_device_pointer(ordinal, buffer.address() + (place << 20), dtype, shape, &strides)
        }
    };
    let names = ["q", "out", "lse", "scratch", "kv_counts", "kv_indices"];
    for one in 0..names.len() {
        for other in one + 1..names.len() {
            // Each at its own place but the two.
            let place = |argument: usize| if argument == other { one as u64 } else { argument as u64 };
            let q = at(place(0), DType::F16, &SHAPE)?;
            let (mut out, mut lse) = (at(place(1), DType::F16, &SHAPE)?, at(place(2), DType::F32, rows)?);
            let mut scratch = at(place(3), DType::U8, &[8 << 10])?;
            let mut kv = output.mask.kv().clone();
            kv.counts = at(place(4), DType::I32, kv.counts.shape())?;
            kv.indices = at(place(5), DType::I32, kv.indices.shape())?;
            let pair = [names[one], names[other]];
            let any = |of: &[&str]| pair.iter().any(|name| of.contains(name));
            let both = |of: &[&str]| pair.iter().all(|name| of.contains(name));
            let lists = MaskLists::new(kv);
            let attend = Attend { q: &q, k, v, lists: &lists, out: &mut out, lse: &mut lse };
            let found = plan.run(attend, &mut scratch);
            expect(found, any(&["out", "lse", "scratch"]), &format!("run(Attend), {pair:?}"))?;
            if both(&["q", "scratch", "kv_counts", "kv_indices"]) {
                let mut lists = MaskLists::new(lists.kv.clone());
                let found = plan.run(Select { q: &q, k, lists: &mut lists }, &mut scratch);
                expect(found, true, &format!("run(Select), {pair:?}"))?;
            }
            if both(&["q", "out", "lse", "scratch"]) {
                let forward = Forward { q: &q, k, v, out: &mut out, lse: &mut lse };
                let found = plan.run(forward, &mut scratch);
                expect(found, true, &format!("run(Forward), {pair:?}"))?;
            }
            // Gradients where the forward's out was, which it reads.
            let d_out = at(8, DType::F16, &SHAPE)?;
            let [dk, dv] = [at(9, DType::F16, &SHAPE)?, at(10, DType::F16, &SHAPE)?];
            let gradients = &mut Gradients { dq: out.clone(), dk, dv };
            let (q, out, lse, d_out, d_lse, lists) = (&q, &out, &lse, &d_out, None, &lists);
            let backward = Backward { q, k, v, out, lse, d_out, d_lse, lists, gradients };
            expect(plan.run(backward, &mut scratch), true, "run(Backward) over its own dq")?;
        }
    }
    // A result in a workspace is no input of the next call into it.
    let mut workspace = plan.workspace()?;
    let again = workspace.output().out.clone();
    let inputs = Inputs { q: &q, k, v: &again };
    expect(plan.forward_into(inputs, &mut workspace).map(drop), true, "forward_into")
}

fn expect(found: Result<(), Error>, aliased: bool, what: &str) -> Result<(), Failed> {
    match (&found, aliased) {
        (Err(Error::Aliased { .. }), true) => Ok(()),
        // Scratch that is too small and the like are of no interest here.
        (Err(Error::Aliased { .. }), false) | (_, true) => Err(format!("{what}: {found:?}").into()),
        _ => Ok(()),
    }
}

#[mask_mod]
fn of_one_document(b: i32, h: i32, q: i32, kv: i32, ids: &[i32]) -> bool {
    ids[q as usize] == ids[kv as usize]
}

fn documents(attention_of: usize) -> of_one_document {
    of_one_document { ids: (0..SHAPE[2]).map(|token| (token / attention_of) as i32).collect() }
}

/// PyTorch takes the thread's current GPU from the driver: no call may leave another one behind, none included.
fn current_gpu(device: &Device) -> Result<(), Failed> {
    let ordinal = device.as_cuda().unwrap().info().ordinal;
    // A new thread has no current GPU.
    std::thread::scope(|scope| scope.spawn(|| on_a_fresh_thread(ordinal)).join().expect("no panic"))
        .map_err(Failed::from)
}

fn on_a_fresh_thread(ordinal: usize) -> Result<(), String> {
    let mut left = Vec::new();
    let mut done = |what: &str| {
        if !matches!(get_current(), Ok(None)) {
            left.push(what.to_owned());
            // SAFETY: null stands for none.
            let _ = unsafe { cudarc::driver::sys::cuCtxSetCurrent(std::ptr::null_mut()) };
        }
    };
    every_call(ordinal, &mut done).map_err(|error| format!("{error:?}"))?;
    done("the drops");
    if left.is_empty() { Ok(()) } else { Err(format!("another GPU is current after {}", left.join(", "))) }
}

fn every_call(ordinal: usize, done: &mut dyn FnMut(&str)) -> Result<(), Failed> {
    let device = &Device::cuda(ordinal)?;
    done("Device::cuda");
    let cuda: &CudaDevice = device.as_cuda().unwrap();
    cuda.memory()?;
    done("memory");
    let mut buffer = cuda.upload(&[1, 2, 3])?;
    done("upload");
    cuda.fill(&mut buffer, 7)?;
    done("fill");
    cuda.htod(&[1, 2, 3], &mut buffer)?;
    done("htod");
    cuda.download(&buffer)?;
    done("download");
    cuda.zeroed(100)?;
    done("zeroed");
    drop(buffer);
    done("a buffer's drop");
    cuda.is_capturing()?;
    done("is_capturing");
    cuda.time_ms(|_| Ok(()))?;
    done("time_ms");
    cuda.synchronize()?;
    done("synchronize");
    let source = "extern \"C\" __global__ void nothing() {}";
    let loaded = cuda.load(&Toolchain::find()?.compile("nothing", source, cuda.arch())?)?;
    done("load");
    loaded.blocks_per_sm(32, 0)?;
    done("blocks_per_sm");
    // SAFETY: it does nothing.
    unsafe { loaded.launch(cuda, [1, 1, 1], 32, 0, &[]) }?;
    done("a loaded kernel's launch");
    drop(loaded);
    done("a loaded kernel's drop");

    let [q, k, v] = inputs(device)?;
    done("to");
    q.to_vec::<half::f16>()?;
    done("to_vec");
    Tensor::uninit(device, DType::F32, &[5])?.fill_bytes(1)?;
    done("fill_bytes");
    drop(Tensor::zeros_on(device, DType::F32, &[5])?);
    done("zeros_on");
    let builder = Attention::builder(HeadDim::D64, DType::F16).select(top_k(0.5));
    let attention = builder.mask_mod(documents(70)).build(device)?;
    done("build");
    let output = attention.forward(&q, &k, &v)?;
    done("forward");
    let plan = attention.plan(Shapes::of(&q, &k)?)?;
    done("plan");
    plan.kernels()[0].blocks_per_sm()?;
    done("a kernel's blocks_per_sm");
    attention.attend_with(&q, &k, &v, &attention.mask(&q, &k)?)?;
    done("mask and attend_with");
    attention.backward(&q, &k, &v, &output, &q, None)?;
    done("backward");
    output.mask.sparsity()?;
    done("sparsity");
    let mut workspace = plan.workspace()?;
    done("workspace");
    plan.forward_into(Inputs { q: &q, k: &k, v: &v }, &mut workspace)?;
    done("forward_into");
    drop((workspace, output));
    done("a workspace's drop");
    drop((plan, attention));
    done("an attention's drop");
    let grid = TokenGrid::new([3, 10, 10])?;
    grid.regroup(&q)?;
    done("regroup");
    Ok(())
}
