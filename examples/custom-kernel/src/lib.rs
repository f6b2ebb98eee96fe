//! RMS normalisation as a kernel of one's own.
//!
//! `kernels/rms_norm/kernel.rs` declares it, `sm80.cu` beside it is its body, `check.rs` checks a schedule before it may win, and
//! `build.rs` makes [`kernels`] of the three. What is left to write is below: which variant, and a launch.

use tilewright::device::CudaDevice;
use tilewright::launch::{Request, Tuned};
use tilewright::{DType, Device, Error, Tensor};

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

/// RMS normalisation of one dtype and head dimension on one GPU.
#[derive(Debug)]
pub struct RmsNorm {
    device: CudaDevice,
    kernel: Tuned,
}

impl RmsNorm {
    /// For tensors `[batch, heads, seq, head_dim]` on a GPU. Nothing is compiled yet.
    ///
    /// # Errors
    /// A dtype or head dimension that `kernel.rs` does not list.
    pub fn new(device: &CudaDevice, dtype: DType, head_dim: usize) -> Result<Self, Error> {
        #[cfg(feature = "ahead-of-time")]
        tilewright::compile::register(AHEAD);
        let request = Request::new(&rms_norm::SOURCE).value("T", dtype).value("D", head_dim as i64);
        Ok(RmsNorm { device: device.clone(), kernel: Tuned::new(device, &request)? })
    }

    /// Normalises the rows of x. The first call of about this size chooses the fastest schedule, for this process and for later ones.
    ///
    /// # Errors
    /// Tensors that the declaration does not allow, no NVRTC, or a GPU that fails.
    pub fn run(&self, x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor, Error> {
        let mut y = Tensor::uninit(&Device::Cuda(self.device.clone()), x.dtype(), x.shape())?;
        // SAFETY: the body reads and writes the rows that its declaration names, whatever `epsilon` is.
        unsafe { self.kernel.launch(&rms_norm::Args { x, weight, y: &mut y, epsilon }, None)? };
        Ok(y)
    }

    /// The kernel, with what was chosen for it.
    pub fn kernel(&self) -> &Tuned {
        &self.kernel
    }
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
