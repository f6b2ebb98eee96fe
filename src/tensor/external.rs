//! GPU memory that somebody else owns: a tensor of PyTorch's, say.

use super::{Storage, Tensor, TensorError, element_count};
use crate::device::{CudaDevice, DeviceError};
use crate::{DType, Error};

/// An address on a GPU. Nothing is freed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct External {
    pub(super) ordinal: usize,
    pub(super) address: u64,
    /// From the address to the end of the last element that a view reaches.
    pub(super) bytes: usize,
}

impl Tensor {
    /// A view of GPU memory that somebody else owns: element `[0, 0, …]` is at `address` of GPU `ordinal`. Strides are
    /// in elements.
    ///
    /// Making it touches no GPU. A kernel that uses it runs on Tilewright's stream of that GPU.
    ///
    /// # Errors
    /// [`TensorError::TooLarge`] when the view does not fit in an address space, [`TensorError::Strides`] unless there
    /// is one stride for every dimension.
    ///
    /// # Safety
    /// While this tensor or a clone of it is in use, every element of the view is memory of that GPU, in its primary
    /// context; what wrote it is done, and nothing else writes it (for an output: uses it) meanwhile.
    pub unsafe fn from_device_pointer(
        ordinal: usize,
        address: u64,
        dtype: DType,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<Self, Error> {
        let too_large = || TensorError::TooLarge { shape: shape.to_vec(), dtype };
        element_count(shape, dtype)?;
        // The last element decides the size of the storage; `with_strides` does the checks that every view has.
        let reach = shape.iter().zip(strides).try_fold(1usize, |reach, (&dim, &stride)| {
            dim.saturating_sub(1).checked_mul(stride).and_then(|step| reach.checked_add(step))
        });
        let bytes = reach.and_then(|reach| reach.checked_mul(dtype.size())).ok_or_else(too_large)?;
        if !u64::try_from(bytes).is_ok_and(|bytes| address.checked_add(bytes).is_some()) {
            return Err(too_large().into());
        }
        let storage = Storage::External(External { ordinal, address, bytes });
        Tensor { dtype, shape: Vec::new(), strides: Vec::new(), storage }.with_strides(shape, strides)
    }
}

impl External {
    pub(super) fn download(self) -> Result<Vec<u8>, Error> {
        // SAFETY: whoever made the tensor promised that its elements are memory of this GPU.
        Ok(unsafe { self.device()?.download_address(self.address, self.bytes) }?)
    }

    pub(super) fn device(self) -> Result<CudaDevice, DeviceError> {
        CudaDevice::new(self.ordinal)
    }
}
