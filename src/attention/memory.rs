//! Where the tensors of a call are made.

use crate::tensor::Arena;
use crate::{DType, Device, Error, Tensor};

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

    pub(super) fn counts(&mut self, shape: &[usize]) -> Result<Tensor, Error> {
        match self {
            Memory::Device { device, fill: Fill::Empty } => Tensor::zeros_on(device, DType::I32, shape),
            _ => self.tensor(DType::I32, shape),
        }
    }
}
