//! Tokens regrouped on a GPU: `cargo bench --bench regroup`. Medians of CUDA-event times; the rate counts every byte read and
//! every byte written, beside a plain copy of the same tensor on the same GPU.

#[path = "support/timing.rs"]
mod timing;

use cudarc::driver::CudaContext;
use std::error::Error;
use tilewright::device::CudaDevice;
use tilewright::{DType, Device, Tensor, TokenGrid};
use timing::{LAUNCHES, median};

fn main() -> Result<(), Box<dyn Error>> {
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(reason) => {
            println!("skipped: no GPU ({reason})");
            return Ok(());
        }
    };
    let cuda = device.as_cuda().expect("asked for above");
    println!("{device}, median of {LAUNCHES} launches");
    let wan = TokenGrid::new([21, 30, 52])?;
    let large = TokenGrid::new([21, 45, 80])?;
    let cog = TokenGrid::builder([13, 30, 45]).before(226).build()?;
    run(cuda, &device, "Wan 480p, hidden states", &wan, DType::Bf16, &[1, wan.len(), 1536], false)?;
    run(cuda, &device, "Wan 480p, heads", &wan, DType::Bf16, &[1, 12, wan.len(), 128], false)?;
    run(cuda, &device, "Wan 480p, heads (BSHD)", &wan, DType::Bf16, &[1, wan.len(), 12, 128], true)?;
    run(cuda, &device, "Wan 480p, rotary table", &wan, DType::F32, &[wan.len(), 64], false)?;
    run(cuda, &device, "Wan 720p, hidden states", &large, DType::Bf16, &[1, large.len(), 5120], false)?;
    run(cuda, &device, "CogVideoX, heads", &cog, DType::Bf16, &[2, 30, cog.len(), 64], false)
}

/// Times one tensor each way; with `bshd` it is seen as `[batch, heads, tokens, d]`.
fn run(
    cuda: &CudaDevice,
    device: &Device,
    name: &str,
    grid: &TokenGrid,
    dtype: DType,
    shape: &[usize],
    bshd: bool,
) -> Result<(), Box<dyn Error>> {
    let laid_out = |tensor: Tensor| if bshd { tensor.permute(&[0, 2, 1, 3]) } else { Ok(tensor) };
    let x = laid_out(Tensor::zeros_on(device, dtype, shape)?)?;
    let mut out = laid_out(Tensor::zeros_on(device, dtype, shape)?)?;
    let bytes = x.elements() * dtype.size();
    let regroup = median(cuda, || grid.regroup_into(&x, &mut out))?;
    let restore = median(cuda, || grid.restore_into(&x, &mut out))?;
    let context = CudaContext::new(cuda.info().ordinal)?;
    // SAFETY: the stream is of this GPU's primary context, and lives as long as the process.
    let stream = unsafe { context.wrap_borrowed_stream(cuda.cu_stream().cast()) };
    let (from, mut to) = (stream.alloc_zeros::<u8>(bytes)?, stream.alloc_zeros::<u8>(bytes)?);
    let copy = median::<Box<dyn Error>>(cuda, || Ok(stream.memcpy_dtod(&from, &mut to)?))?;
    let rate = |ms: f32| 2.0 * bytes as f64 / f64::from(ms) / 1e6;
    println!(
        "  {name:<26} {:>6.1} MB  regroup {regroup:.4} ms ({:.0} GB/s)  restore {restore:.4} ms ({:.0} GB/s)  copy {copy:.4} ms ({:.0} GB/s)",
        bytes as f64 / 1e6,
        rate(regroup),
        rate(restore),
        rate(copy)
    );
    Ok(())
}
