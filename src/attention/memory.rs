//! Where the tensors of a call are made.

use super::Sizes;
use crate::launch::TensorDecl;
use crate::tensor::Arena;
use crate::{BlockIndex, DType, Device, Error, Tensor};

/// Where tensors of a call are made.
pub(super) enum Memory<'a> {
    /// On the device.
    Device {
        /// Which.
        device: &'a Device,
        /// What new counts hold.
        fill: Fill,
    },
    /// In a buffer of the caller's.
    Arena(&'a mut Arena),
}

/// What new counts hold.
#[derive(Clone, Copy)]
pub(super) enum Fill {
    /// Whatever the memory did: a kernel writes them before anybody looks.
    Anything,
    /// Nothing: they can be looked at.
    Empty,
}

impl Memory<'_> {
    pub(super) fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
        match self {
            Memory::Device { device, .. } => Tensor::uninit(device, dtype, shape),
            Memory::Arena(arena) => arena.tensor(dtype, shape),
        }
    }

    /// Room for an argument of a kernel, in a call of these sizes.
    pub(super) fn argument(&mut self, decl: &TensorDecl, sizes: &Sizes) -> Result<Tensor, Error> {
        self.tensor(element_type(decl), &sizes.shape(decl))
    }

    /// Room for the lists that a kernel writes to these arguments, counts and indices.
    pub(super) fn index(
        &mut self,
        [counts, indices]: [&TensorDecl; 2],
        sizes: &Sizes,
    ) -> Result<BlockIndex, Error> {
        let counts = match self {
            Memory::Device { device, fill: Fill::Empty } => {
                Tensor::zeros_on(device, element_type(counts), &sizes.shape(counts))?
            }
            _ => self.argument(counts, sizes)?,
        };
        Ok(BlockIndex { counts, indices: self.argument(indices, sizes)? })
    }
}

/// Of an argument that no spec gives another one: what passes between kernels is f32 or integers, whatever q is.
fn element_type(decl: &TensorDecl) -> DType {
    decl.dtype.unwrap_or_else(|| unreachable!("`{}` has the dtype of the call's tensors", decl.name))
}
