//! Tensors in larger memory that holds a pattern, which must be there afterwards.

use libtest_mimic::Failed;
use tilewright::device::{CudaDevice, DeviceBuffer};
use tilewright::{DType, Device, Tensor};

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A view of the first elements of a larger tensor.
    Owned,
    /// A view of the middle of somebody else's buffer.
    External,
}

/// Bytes of the pattern on either side.
const GUARD: usize = 4096;
const PATTERN: u8 = 0xAB;

/// A contiguous tensor with a pattern around it.
pub struct Guarded {
    pub tensor: Tensor,
    memory: Memory,
}

enum Memory {
    Owned(Tensor),
    External(DeviceBuffer),
}

impl Guarded {
    pub fn new(cuda: &CudaDevice, place: Place, dtype: DType, shape: &[usize]) -> Result<Self, Failed> {
        Self::strided(cuda, place, dtype, shape, &Tensor::contiguous_strides(shape))
    }

    /// With strides; what lies between the elements holds the pattern too.
    pub fn strided(
        cuda: &CudaDevice,
        place: Place,
        dtype: DType,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<Self, Failed> {
        let reach: usize = shape.iter().zip(strides).map(|(dim, stride)| (dim - 1) * stride).sum();
        let bytes = (reach + 1) * dtype.size();
        Ok(match place {
            Place::Owned => {
                let elements = reach + 1 + GUARD / dtype.size();
                let mut all = Tensor::uninit(&Device::Cuda(cuda.clone()), dtype, &[elements])?;
                all.fill_bytes(PATTERN)?;
                Guarded { tensor: all.with_strides(shape, strides)?, memory: Memory::Owned(all) }
            }
            Place::External => {
                let mut buffer = cuda.uninit(bytes + 2 * GUARD)?;
                cuda.fill(&mut buffer, PATTERN)?;
                let (address, ordinal) = (buffer.address() + GUARD as u64, cuda.info().ordinal);
                // SAFETY: the buffer is larger than the view, and lives as long.
                let tensor = unsafe { Tensor::from_device_pointer(ordinal, address, dtype, shape, strides) }?;
                Guarded { tensor, memory: Memory::External(buffer) }
            }
        })
    }

    /// Whether every byte that is none of the tensor's is as it was.
    pub fn check(&self, cuda: &CudaDevice, what: &str) -> Result<(), Failed> {
        cuda.synchronize()?;
        let size = self.tensor.dtype().size();
        let (bytes, first) = match &self.memory {
            Memory::Owned(all) => (bytes_of(all)?, 0),
            Memory::External(buffer) => (cuda.download(buffer)?, GUARD),
        };
        let mut guard = vec![true; bytes.len()];
        let (shape, strides) = (self.tensor.shape(), self.tensor.strides());
        for mut place in 0..self.tensor.elements() {
            let mut offset = 0;
            for (dim, stride) in shape.iter().zip(strides).rev() {
                offset += place % dim * stride;
                place /= dim;
            }
            guard[first + offset * size..][..size].fill(false);
        }
        let lost = bytes.iter().zip(&guard).filter(|(byte, guard)| **guard && **byte != PATTERN).count();
        if lost > 0 {
            return Err(format!("{what}: {lost} bytes beside the tensor were overwritten").into());
        }
        Ok(())
    }
}

fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>, Failed> {
    Ok(match tensor.dtype() {
        DType::F16 => tensor.to_vec::<half::f16>()?.into_iter().flat_map(half::f16::to_ne_bytes).collect(),
        DType::Bf16 => tensor.to_vec::<half::bf16>()?.into_iter().flat_map(half::bf16::to_ne_bytes).collect(),
        DType::I32 => tensor.to_vec::<i32>()?.into_iter().flat_map(i32::to_ne_bytes).collect(),
        DType::U8 => tensor.to_vec::<u8>()?,
        _ => tensor.to_vec::<f32>()?.into_iter().flat_map(f32::to_ne_bytes).collect(),
    })
}
