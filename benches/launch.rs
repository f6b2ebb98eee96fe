//! What a launch costs the host once its kernel is loaded: `cargo bench --bench launch`.

use std::time::Instant;
use tilewright::attention::{Forward, Inputs, Shapes, Step};
use tilewright::device::CudaDevice;
use tilewright::kernels::transpose;
use tilewright::launch::{Request, load};
use tilewright::toolchain::Toolchain;
use tilewright::{Attention, DType, Device, Error, HeadDim, Tensor, top_k, top_p};

const LAUNCHES: u32 = 2000;
const SERIES: usize = 9;

fn main() -> Result<(), Error> {
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(reason) => {
            println!("skipped: no GPU ({reason})");
            return Ok(());
        }
    };
    let cuda = device.as_cuda().expect("asked for above");
    println!("{device}, host time a launch, median of {SERIES} series of {LAUNCHES}");

    nothing(&device, cuda)?;
    let kernel = load(cuda, &[Request::new(&transpose::SOURCE)])?.remove(0);
    let keep = Tensor::zeros_on(&device, DType::I32, &[1, 1, 8, 1])?;
    let mut q_counts = Tensor::uninit(&device, DType::I32, &[1, 1, 32])?;
    let mut q_indices = Tensor::uninit(&device, DType::I32, &[1, 1, 32, 8])?;
    report(&device, "one checked launch (transpose, 5 tensor arguments)", 1, || {
        let args = transpose::Args {
            keep: &keep,
            full_keep: None,
            q_counts: &mut q_counts,
            q_indices: &mut q_indices,
            full_q_counts: None,
            full_q_indices: None,
            key_order: None,
            finished: None,
        };
        // SAFETY: the bits are those of blocks that exist, and without an order there is no counter.
        unsafe { kernel.launch(&args, None) }
    })?;

    // Small, so that the queue never fills up and the host is what is timed.
    let shape = [1, 1, 128, 64];
    let attention =
        Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.5) | top_p(0.5)).build(&device)?;
    let tensor = || Tensor::zeros_on(&device, DType::Bf16, &shape);
    let (q, k, v) = (tensor()?, tensor()?, tensor()?);
    let (plan, inputs) = (attention.plan(Shapes::of(&q, &k)?)?, Inputs { q: &q, k: &k, v: &v });
    let mut workspace = plan.workspace()?;
    plan.forward_into(inputs, &mut workspace)?;
    let launches = plan.kernels().len() as u32;
    report(&device, "forward_into (the whole chain), a launch", launches, || {
        plan.forward_into(inputs, &mut workspace).map(drop)
    })?;
    framework(&device, &attention, inputs)?;
    let mask = attention.mask(&q, &k)?;
    report(&device, "attend_with (the forward alone, two tensors allocated)", 1, || {
        attention.attend_with(&q, &k, &v, &mask).map(drop)
    })
}

/// What a framework does in a call: a plan, its scratch, and a run in memory that there is.
fn framework(device: &Device, attention: &Attention, Inputs { q, k, v }: Inputs<'_>) -> Result<(), Error> {
    let mut out = Tensor::uninit(device, DType::Bf16, q.shape())?;
    let mut lse = Tensor::uninit(device, DType::F32, &q.shape()[..3])?;
    let bytes = attention.plan(Shapes::of(q, k)?)?.scratch_bytes(Step::Forward)?;
    let mut scratch = Tensor::uninit(device, DType::U8, &[bytes])?;
    report(device, "a plan, its scratch's size and its warmth", 1, || {
        let plan = attention.plan(Shapes::of(q, k)?)?;
        std::hint::black_box((plan.scratch_bytes(Step::Forward)?, plan.is_warm(Step::Forward)));
        Ok(())
    })?;
    report(device, "the same and its run in given memory", 1, || {
        let plan = attention.plan(Shapes::of(q, k)?)?;
        std::hint::black_box((plan.scratch_bytes(Step::Forward)?, plan.is_warm(Step::Forward)));
        plan.run(Forward { q, k, v, out: &mut out, lse: &mut lse }, &mut scratch)
    })
}

/// The driver's own part: a kernel that does nothing, with as many bytes of arguments as the forward has.
fn nothing(device: &Device, cuda: &CudaDevice) -> Result<(), Error> {
    let toolchain = Toolchain::find()?;
    for (what, bytes) in [("200 bytes of arguments", 200), ("600 bytes of arguments", 600)] {
        let source = format!(
            "struct Params {{ char bytes[{bytes}]; }};\nextern \"C\" __global__ void nothing(const __grid_constant__ Params p) {{}}"
        );
        let kernel = cuda.load(&toolchain.compile("nothing", &source, cuda.arch())?)?;
        let params = vec![0; bytes];
        report(device, &format!("the driver's own part, {what}"), 1, || {
            // SAFETY: the kernel reads nothing.
            Ok(unsafe { kernel.launch(cuda, [1, 1, 1], 128, 0, &[&params]) }?)
        })?;
    }
    Ok(())
}

fn report(
    device: &Device,
    what: &str,
    launches: u32,
    mut call: impl FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    let cuda = device.as_cuda().expect("a GPU");
    let mut times = Vec::with_capacity(SERIES);
    for _ in 0..=SERIES {
        let mut host = 0.0;
        // In short bursts with a wait between: a full queue would make the host wait for the GPU.
        for _ in 0..LAUNCHES / 100 {
            let start = Instant::now();
            for _ in 0..100 {
                call()?;
            }
            host += start.elapsed().as_secs_f64();
            cuda.synchronize()?;
        }
        times.push(1e6 * host / f64::from(LAUNCHES * launches));
    }
    // The first series warms up.
    times.remove(0);
    times.sort_by(f64::total_cmp);
    println!("  {what:<52} {:.2} µs ({:.2} to {:.2})", times[SERIES / 2], times[0], times[SERIES - 1]);
    Ok(())
}
