//! Numbers to tune on: zeros would run faster than anything real.

use half::{bf16, f16};
use tilewright::tensor::host_count;
use tilewright::{DType, Error, Tensor};

/// Noise, the same every time.
pub struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Noise(0x2545_F491_4F6C_DD1D)
    }
}

impl Noise {
    /// Evenly spread with variance 1.
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0) * 3f32.sqrt()
    }

    /// A tensor on the host: of noise where its elements are real numbers, else of zeros.
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
        let count = host_count(shape, dtype)?;
        match dtype {
            DType::F16 => Tensor::from_slice(&self.values(count, f16::from_f32), shape),
            DType::Bf16 => Tensor::from_slice(&self.values(count, bf16::from_f32), shape),
            DType::F32 => Tensor::from_slice(&self.values(count, |x| x), shape),
            _ => Tensor::zeros(dtype, shape),
        }
    }

    fn values<E>(&mut self, count: usize, of: impl Fn(f32) -> E) -> Vec<E> {
        (0..count).map(|_| of(self.next())).collect()
    }
}
