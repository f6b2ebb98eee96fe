//! Tensors: a dtype, a shape, strides and a storage in host memory or on a GPU.
//!
//! ```
//! use tilewright::Tensor;
//! let t = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3])?;
//! assert_eq!(t.strides(), &[3, 1]);
//! let transposed = t.permute(&[1, 0])?;
//! assert_eq!(transposed.to_vec::<f32>()?, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
//! # Ok::<(), tilewright::Error>(())
//! ```

mod debug;
mod device;
mod element;
mod error;
mod external;
mod host;
mod region;

use device::CudaStorage;
pub(crate) use device::{Saved, place_name};
pub use element::Element;
pub(crate) use element::Half;
pub use error::TensorError;
pub(crate) use external::Arena;
use external::External;
use host::HostBuffer;
pub(crate) use region::{Named, Region, expect_apart};

use crate::device::Device;
use crate::{DType, Error, room};
use smallvec::SmallVec;
use std::sync::Arc;

/// A strided view of shared storage. Cloning is cheap and shares the storage.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Dims,
    /// In elements.
    strides: Dims,
    storage: Storage,
}

/// One number a dimension: a tensor of up to four costs no allocation, for a warm call makes a dozen.
type Dims = SmallVec<[usize; 4]>;

/// Where the elements are.
#[derive(Clone)]
pub(crate) enum Storage {
    /// Host memory.
    Host(Arc<HostBuffer>),
    /// GPU memory.
    Cuda(Arc<CudaStorage>),
    /// GPU memory of somebody else's.
    External(External),
}

fn dense_strides(shape: &[usize]) -> Dims {
    let mut strides = Dims::from_elem(1, shape.len());
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
    }
    strides
}

/// How many elements a shape has. Dimensions other than 0 are bounded where there are none too: no product of a few of them
/// overflows, whatever their order.
pub(crate) fn element_count(shape: &[usize], dtype: DType) -> Result<usize, TensorError> {
    shape
        .iter()
        .try_fold(1usize, |n, &dim| n.checked_mul(dim.max(1)))
        .filter(|n| n.checked_mul(dtype.size()).is_some_and(|bytes| bytes <= isize::MAX as usize))
        .map(|n| if shape.contains(&0) { 0 } else { n })
        .ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec(), dtype })
}

/// The same of elements that the host has memory for.
pub(crate) fn host_count(shape: &[usize], dtype: DType) -> Result<usize, TensorError> {
    let count = element_count(shape, dtype)?;
    let has_room = room::has(count.checked_mul(dtype.size()));
    has_room.then_some(count).ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec(), dtype })
}

impl Tensor {
    /// Strides of a contiguous tensor of a shape: the last dimension is the fastest. Those of a shape that no tensor has are cut at
    /// the largest number.
    pub fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
        dense_strides(shape).into_vec()
    }

    /// A contiguous host tensor with a copy of `data`.
    ///
    /// # Errors
    /// [`TensorError::Length`] unless `data` has as many elements as `shape`.
    pub fn from_slice<E: Element>(data: &[E], shape: &[usize]) -> Result<Self, Error> {
        let needed = element_count(shape, E::DTYPE)?;
        if data.len() != needed {
            return Err(TensorError::Length { found: data.len(), needed, shape: shape.to_vec() }.into());
        }
        host_count(shape, E::DTYPE)?;
        Ok(Self::host(E::DTYPE, shape, HostBuffer::copy_of(bytemuck::cast_slice(data))))
    }

    /// A contiguous host tensor of `dtype` from its little-endian bytes, as a safetensors file holds them.
    ///
    /// # Errors
    /// [`TensorError::Length`] unless there are exactly as many bytes as the shape needs.
    pub fn from_bytes(dtype: DType, bytes: &[u8], shape: &[usize]) -> Result<Self, Error> {
        let needed = element_count(shape, dtype)?;
        if bytes.len() != needed * dtype.size() {
            let found = bytes.len() / dtype.size();
            return Err(TensorError::Length { found, needed, shape: shape.to_vec() }.into());
        }
        host_count(shape, dtype)?;
        Ok(Self::host(dtype, shape, HostBuffer::copy_of(bytes)))
    }

    /// A contiguous host tensor of zeros.
    ///
    /// # Errors
    /// [`TensorError::TooLarge`] when the shape does not fit in memory.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, Error> {
        let bytes = host_count(shape, dtype)? * dtype.size();
        Ok(Self::host(dtype, shape, HostBuffer::zeroed(bytes)))
    }

    fn host(dtype: DType, shape: &[usize], buffer: HostBuffer) -> Self {
        Tensor {
            dtype,
            shape: shape.into(),
            strides: dense_strides(shape),
            storage: Storage::Host(Arc::new(buffer)),
        }
    }

    /// The same storage seen with another shape and strides (in elements).
    ///
    /// # Errors
    /// [`TensorError::Strides`] when a view would leave the storage or the lengths differ, [`TensorError::TooLarge`] for more
    /// elements than can be counted.
    pub fn with_strides(&self, shape: &[usize], strides: &[usize]) -> Result<Self, Error> {
        let elements = self.storage_elements();
        let fail = |why| {
            let (strides, shape) = (strides.to_vec(), shape.to_vec());
            Err(TensorError::Strides { strides, shape, elements, why }.into())
        };
        if shape.len() != strides.len() {
            return fail("give one stride for every dimension");
        }
        element_count(shape, self.dtype)?;
        let last = shape.iter().zip(strides).try_fold(0usize, |last, (&dim, &stride)| {
            dim.saturating_sub(1).checked_mul(stride).and_then(|step| last.checked_add(step))
        });
        let empty = shape.contains(&0);
        if !empty && last.is_none_or(|last| last >= elements) {
            return fail("the last element would lie outside the storage");
        }
        Ok(Tensor { shape: shape.into(), strides: strides.into(), ..self.clone() })
    }

    /// The same storage with its dimensions reordered; `order` names each dimension once.
    ///
    /// A `[batch, seq, heads, d]` (BSHD) tensor becomes `[batch, heads, seq, d]` with `permute(&[0, 2, 1, 3])`, without a copy.
    ///
    /// # Errors
    /// [`TensorError::Order`] unless `order` names each dimension once.
    pub fn permute(&self, order: &[usize]) -> Result<Self, Error> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..self.shape.len()) {
            return Err(TensorError::Order { order: order.to_vec(), rank: self.shape.len() }.into());
        }
        Ok(Tensor {
            shape: order.iter().map(|&i| self.shape[i]).collect(),
            strides: order.iter().map(|&i| self.strides[i]).collect(),
            ..self.clone()
        })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The distance between neighbours along each dimension, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the elements lie densely in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let dense = dense_strides(&self.shape);
        self.shape.iter().zip(self.strides.iter().zip(&dense)).all(|(&dim, (a, b))| dim == 1 || a == b)
    }

    /// Whether the elements lie densely in some order of the dimensions: nothing lies between them.
    pub(crate) fn is_dense(&self) -> bool {
        let mut order: SmallVec<[usize; 4]> = (0..self.shape.len()).filter(|&i| self.shape[i] != 1).collect();
        order.sort_unstable_by_key(|&i| self.strides[i]);
        let mut next = 1;
        order.into_iter().all(|i| {
            let fits = self.strides[i] == next;
            next *= self.shape[i];
            fits
        }) || self.elements() == 0
    }

    fn storage_elements(&self) -> usize {
        self.storage_bytes() / self.dtype.size()
    }

    fn storage_bytes(&self) -> usize {
        match &self.storage {
            Storage::Host(buffer) => buffer.len(),
            Storage::Cuda(storage) => storage.len(),
            Storage::External(memory) => memory.bytes,
        }
    }

    /// The whole storage of a host tensor, to be indexed with [`strides`](Self::strides).
    ///
    /// # Errors
    /// [`TensorError::DType`] when the elements are not `E`; [`TensorError::Place`] when it is on a GPU.
    pub fn host_elements<E: Element>(&self) -> Result<&[E], Error> {
        self.expect_dtype("the tensor", E::DTYPE)?;
        match &self.storage {
            Storage::Host(buffer) => Ok(bytemuck::cast_slice(buffer.bytes())),
            Storage::Cuda(_) | Storage::External(_) => Err(TensorError::Place {
                what: "the tensor".into(),
                found: self.place(),
                needed: "the CPU".into(),
            }
            .into()),
        }
    }

    /// The elements in row-major order, copied (from the GPU too).
    ///
    /// # Errors
    /// [`TensorError::DType`] when the elements are not `E`; a device error when the copy fails.
    pub fn to_vec<E: Element>(&self) -> Result<Vec<E>, Error> {
        if !matches!(self.storage, Storage::Host(_)) {
            return self.to(&Device::Cpu)?.to_vec();
        }
        let all = self.host_elements::<E>()?;
        if self.is_contiguous() {
            return Ok(all[..self.elements()].to_vec());
        }
        // A view may repeat what little there is.
        let mut out = Vec::with_capacity(host_count(&self.shape, self.dtype)?);
        self.for_each_offset(|offset| out.push(all[offset]));
        Ok(out)
    }

    /// The elements as `f32` in row-major order; half types widen exactly.
    ///
    /// # Errors
    /// As [`to_vec`](Self::to_vec); integer tensors are refused.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>, Error> {
        match self.dtype {
            DType::F16 => Ok(self.to_vec::<half::f16>()?.into_iter().map(Half::widen).collect()),
            DType::Bf16 => Ok(self.to_vec::<half::bf16>()?.into_iter().map(Half::widen).collect()),
            _ => self.to_vec::<f32>(),
        }
    }

    fn for_each_offset(&self, mut visit: impl FnMut(usize)) {
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..self.elements() {
            visit(index.iter().zip(&self.strides).map(|(i, s)| i * s).sum());
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
    }

    /// Refuses a tensor of other elements.
    pub(crate) fn expect_dtype(&self, what: &str, needed: DType) -> Result<(), TensorError> {
        if self.dtype == needed {
            return Ok(());
        }
        Err(TensorError::DType { what: what.to_owned(), found: self.dtype, needed: needed.to_string() })
    }
}
