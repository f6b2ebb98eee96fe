//! RMS normalisation as a kernel of one's own.
//!
//! `kernels/rms_norm/kernel.rs` declares it, `kernels/rms_norm/sm80.cu` is its body, `build.rs` makes [`kernels`] of the
//! two. What is left to write is below: which variant, and a launch.

use tilewright::device::CudaDevice;
use tilewright::launch::{Request, load};
use tilewright::{Device, Error, Tensor};

/// What `build.rs` generated: for each kernel its files, its arguments and their checks.
// Generated; formatted by the generator.
#[rustfmt::skip]
pub mod kernels {
    include!(concat!(env!("OUT_DIR"), "/tilewright.rs"));
}

use kernels::rms_norm;

// The kernels that `build.rs` compiled.
#[cfg(feature = "ahead-of-time")]
include!(concat!(env!("OUT_DIR"), "/tilewright_ahead.rs"));

/// Normalises the rows of x `[batch, heads, seq, head_dim]` on the GPU that x is on.
///
/// # Errors
/// A dtype or head dimension that `kernel.rs` does not list, tensors it does not allow, no NVRTC, or a GPU that fails.
pub fn rms_norm(device: &CudaDevice, x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor, Error> {
    #[cfg(feature = "ahead-of-time")]
    tilewright::compile::register(AHEAD);
    // The last dimension is `head_dim`; a tensor without one is refused by the launch.
    let head_dim = x.shape().last().map_or(0, |&dim| dim as i64);
    let request = Request::new(&rms_norm::SOURCE).value("T", x.dtype()).value("D", head_dim);
    // Compiled at the first call, found again by every other.
    let kernel = load(device, &[request])?.remove(0);
    let mut y = Tensor::uninit(&Device::Cuda(device.clone()), x.dtype(), x.shape())?;
    // SAFETY: the body reads and writes the rows that its declaration names, whatever `epsilon` is.
    unsafe { kernel.launch(&rms_norm::Args { x, weight, y: &mut y, epsilon }, None)? };
    Ok(y)
}

/// The same on the CPU, for comparison: rows of `weight.len()` elements one after another.
pub fn rms_norm_cpu(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let row = |x: &[f32]| {
        let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
        let factor = 1.0 / (mean + epsilon).sqrt();
        x.iter().zip(weight).map(|(x, weight)| x * factor * weight).collect::<Vec<f32>>()
    };
    x.chunks(weight.len()).flat_map(row).collect()
}
