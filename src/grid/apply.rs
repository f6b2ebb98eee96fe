//! Tensors in another order.

use super::{GridError, TokenGrid};
use crate::device::CudaDevice;
use crate::tensor::{Element, TensorError, host_count};
use crate::{DType, Device, Error, Tensor, parallel};
use half::{bf16, f16};
use rayon::prelude::*;

/// Which way tokens go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From raster order to the new one.
    Regroup,
    /// Back.
    Restore,
}

impl TokenGrid {
    /// The tokens of a tensor in the new order.
    ///
    /// The tensor is `[batch, heads, tokens, d]`, `[batch, tokens, d]` (hidden states) or `[tokens, d]` (tables of the rotary
    /// embedding), f16, bf16 or f32, with any strides but that of d, which is 1: a `[batch, tokens, heads, d]` tensor needs
    /// only a [`permute`](Tensor::permute). The result is a contiguous tensor of the same shape on the same device.
    ///
    /// On a GPU the kernel is compiled, and the order uploaded, at the first call: call once before capturing a graph.
    ///
    /// # Errors
    /// [`GridError::Length`] for a tensor of another number of tokens, [`Error::Tensor`] for another rank, dtype or stride of
    /// d; the errors of [`launch::load`](crate::launch::load) and of the device on a GPU.
    pub fn regroup(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        self.moved(tensor, Way::Regroup)
    }

    /// The tokens of a tensor in the new order, back in raster order: the inverse of [`regroup`](Self::regroup).
    ///
    /// # Errors
    /// As [`regroup`](Self::regroup).
    pub fn restore(&self, tensor: &Tensor) -> Result<Tensor, Error> {
        self.moved(tensor, Way::Restore)
    }

    /// [`regroup`](Self::regroup) into memory of the caller's, with any strides but that of d: on a GPU alone.
    ///
    /// `out` must not overlap `tensor`: rows are read while others are written.
    ///
    /// # Errors
    /// [`Error::NotOnGpu`] for tensors on the CPU, [`GridError::Output`] unless `out` has the tensor's shape and dtype,
    /// [`Error::SharedRows`] when they overlap; otherwise as [`regroup`](Self::regroup).
    pub fn regroup_into(&self, tensor: &Tensor, out: &mut Tensor) -> Result<(), Error> {
        self.move_into(tensor, out, Way::Regroup)
    }

    /// [`restore`](Self::restore) into memory of the caller's: see [`regroup_into`](Self::regroup_into).
    ///
    /// # Errors
    /// As [`regroup_into`](Self::regroup_into).
    pub fn restore_into(&self, tensor: &Tensor, out: &mut Tensor) -> Result<(), Error> {
        self.move_into(tensor, out, Way::Restore)
    }

    /// The same grid with its GPU work on a stream of the caller's, for tensors of that GPU.
    ///
    /// # Safety
    /// As for [`CudaDevice::on_stream`]. This grid, or a clone of it, outlives the work on the stream.
    pub unsafe fn on_stream(&self, device: &CudaDevice, stream: *mut std::ffi::c_void) -> Self {
        // SAFETY: the caller answers for the stream.
        let stream = Some(unsafe { device.on_stream(stream) });
        TokenGrid { stream, ..self.clone() }
    }

    fn moved(&self, tensor: &Tensor, way: Way) -> Result<Tensor, Error> {
        let rows = self.rows("the tensor", tensor)?;
        let Some(cuda) = self.device_of(tensor)? else {
            return match tensor.dtype() {
                DType::F16 => on_cpu::<f16>(&rows, self.list(way), tensor.shape()),
                DType::Bf16 => on_cpu::<bf16>(&rows, self.list(way), tensor.shape()),
                _ => on_cpu::<f32>(&rows, self.list(way), tensor.shape()),
            };
        };
        let out = Tensor::uninit(&Device::Cuda(cuda.clone()), tensor.dtype(), tensor.shape())?;
        self.on_gpu(&cuda, &rows, &mut self.rows("the result", &out)?, way)?;
        Ok(out)
    }

    fn move_into(&self, tensor: &Tensor, out: &mut Tensor, way: Way) -> Result<(), Error> {
        let rows = self.rows("the tensor", tensor)?;
        if (tensor.shape(), tensor.dtype()) != (out.shape(), out.dtype()) {
            let (needed, dtype) = (tensor.shape().to_vec(), tensor.dtype());
            let (found, found_dtype) = (out.shape().to_vec(), out.dtype());
            return Err(GridError::Output { needed, dtype, found, found_dtype }.into());
        }
        if tensor.overlaps(out) {
            return Err(Error::SharedRows);
        }
        let Some(cuda) = self.device_of(tensor)? else {
            return Err(Error::NotOnGpu { what: "a tensor to write to" });
        };
        out.expect_place("the result", &Device::Cuda(cuda.clone()))?;
        self.on_gpu(&cuda, &rows, &mut self.rows("the result", out)?, way)
    }

    /// The GPU and the stream a tensor is moved on; none on the CPU.
    fn device_of(&self, tensor: &Tensor) -> Result<Option<CudaDevice>, Error> {
        match (&self.stream, tensor.ordinal()) {
            (Some(stream), Some(ordinal)) if stream.info().ordinal == ordinal => Ok(Some(stream.clone())),
            _ => tensor.cuda_device(),
        }
    }

    /// The entry at each place of the result that says which row it is.
    pub(super) fn list(&self, way: Way) -> &[i32] {
        match way {
            Way::Regroup => self.order(),
            Way::Restore => self.inverse(),
        }
    }

    /// The tensor as `[batch, heads, tokens, d]`, once it has been checked.
    fn rows(&self, what: &str, tensor: &Tensor) -> Result<Tensor, Error> {
        if !matches!(tensor.dtype(), DType::F16 | DType::Bf16 | DType::F32) {
            let (what, found, needed) = (what.to_owned(), tensor.dtype(), "f16, bf16 or f32".to_owned());
            return Err(TensorError::DType { what, found, needed }.into());
        }
        let (shape, strides) = (tensor.shape(), tensor.strides());
        let (shape, strides) = match (shape, strides) {
            (&[tokens, d], &[s, one]) => ([1, 1, tokens, d], [0, 0, s, one]),
            (&[batch, tokens, d], &[b, s, one]) => ([batch, 1, tokens, d], [b, 0, s, one]),
            (&[batch, heads, tokens, d], &[b, h, s, one]) => ([batch, heads, tokens, d], [b, h, s, one]),
            _ => {
                return Err(TensorError::Rank {
                    what: what.to_owned(),
                    found: shape.len(),
                    needed: 4,
                    shape: shape.to_vec(),
                    layout: "they are batch, heads, tokens and d, and batch and heads can be left out"
                        .to_owned(),
                }
                .into());
            }
        };
        if shape[2] != self.len() {
            let (found, needed, expected) = (shape[2], self.len(), self.to_string());
            return Err(GridError::Length { found, needed, expected, shape: tensor.shape().to_vec() }.into());
        }
        if shape[3] > 1 && strides[3] != 1 {
            return Err(TensorError::Strides {
                strides: tensor.strides().to_vec(),
                shape: tensor.shape().to_vec(),
                elements: tensor.elements(),
                why: "the last dimension must have unit stride",
            }
            .into());
        }
        tensor.with_strides(&shape, &strides)
    }
}

/// Copies rows on all cores.
fn on_cpu<E: Element>(rows: &Tensor, list: &[i32], shape: &[usize]) -> Result<Tensor, Error> {
    let &[_, heads, tokens, d] = rows.shape() else { unreachable!("made by `rows`") };
    let mut moved: Vec<E> = vec![bytemuck::Zeroable::zeroed(); host_count(shape, E::DTYPE)?];
    if !moved.is_empty() {
        let (elements, strides) = (rows.host_elements::<E>()?, rows.strides());
        let copy = |(place, row): (usize, &mut [E])| {
            let (head, token) = (place / tokens, place % tokens);
            let start =
                head / heads * strides[0] + head % heads * strides[1] + list[token] as usize * strides[2];
            row.copy_from_slice(&elements[start..start + d]);
        };
        parallel::run(|| moved.par_chunks_mut(d).enumerate().with_min_len(64).for_each(copy));
    }
    Tensor::from_slice(&moved, shape)
}
