//! Tensors on a GPU: where they are, and copies to and from the host.

use super::region::Copy;
use super::{Region, Storage, Tensor, TensorError, dense_strides, element_count, host::HostBuffer};
use crate::device::{CudaDevice, Device, DeviceBuffer};
use crate::{DType, Error, room};
use std::sync::Arc;

/// GPU memory with the device it is on.
#[derive(Debug)]
pub(crate) struct CudaStorage {
    device: CudaDevice,
    buffer: DeviceBuffer,
}

impl CudaStorage {
    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(super) fn download(&self) -> Result<Vec<u8>, Error> {
        Ok(self.device.download(&self.buffer)?)
    }
}

impl Tensor {
    /// A contiguous tensor on `device` whose elements are whatever the memory held; zeros on the CPU.
    ///
    /// # Errors
    /// [`TensorError::TooLarge`] when the shape does not fit in an address space, a device error when it does not fit
    /// in the GPU's memory.
    pub fn uninit(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self, Error> {
        let Device::Cuda(device) = device else { return Self::zeros(dtype, shape) };
        let bytes = element_count(shape, dtype)? * dtype.size();
        Ok(Self::on(device, dtype, shape, device.uninit(bytes)?))
    }

    /// A contiguous tensor of zeros on `device`.
    ///
    /// # Errors
    /// As [`uninit`](Self::uninit).
    pub fn zeros_on(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self, Error> {
        let Device::Cuda(device) = device else { return Self::zeros(dtype, shape) };
        let bytes = element_count(shape, dtype)? * dtype.size();
        Ok(Self::on(device, dtype, shape, device.zeroed(bytes)?))
    }

    fn on(device: &CudaDevice, dtype: DType, shape: &[usize], buffer: DeviceBuffer) -> Self {
        let storage = Storage::Cuda(Arc::new(CudaStorage { device: device.clone(), buffer }));
        Tensor { dtype, shape: shape.into(), strides: dense_strides(shape), storage }
    }

    /// The same tensor on `device`: itself when it is there already, otherwise a copy with the same strides.
    ///
    /// # Errors
    /// [`TensorError::TooLarge`] when the host has no memory for what comes from a GPU; a device error when the copy fails.
    pub fn to(&self, device: &Device) -> Result<Self, Error> {
        if self.is_on(device) {
            return Ok(self.clone());
        }
        // Of what comes from a GPU there is a copy on the way, and one to stay where that is the host.
        let copies = if device.is_cuda() { 1 } else { 2 };
        let comes = self.ordinal().is_none() || room::has(self.storage_bytes().checked_mul(copies));
        if !comes {
            return Err(TensorError::TooLarge { shape: self.shape.to_vec(), dtype: self.dtype }.into());
        }
        let bytes;
        let host: &[u8] = match &self.storage {
            Storage::Host(buffer) => buffer.bytes(),
            Storage::Cuda(storage) => {
                bytes = storage.download()?;
                &bytes
            }
            Storage::External(memory) => {
                bytes = memory.download()?;
                &bytes
            }
        };
        let storage = match device {
            Device::Cpu => Storage::Host(Arc::new(HostBuffer::copy_of(host))),
            Device::Cuda(cuda) => {
                Storage::Cuda(Arc::new(CudaStorage { device: cuda.clone(), buffer: cuda.upload(host)? }))
            }
        };
        Ok(Tensor { storage, ..self.clone() })
    }

    /// Sets every byte of the storage: tests poison outputs with it before a kernel writes them.
    ///
    /// # Errors
    /// [`TensorError::Shared`] when another tensor shares the storage; a device error when the GPU refuses.
    pub fn fill_bytes(&mut self, byte: u8) -> Result<(), Error> {
        match &mut self.storage {
            Storage::Host(buffer) => Arc::get_mut(buffer).ok_or(TensorError::Shared)?.fill(byte),
            Storage::Cuda(storage) => {
                let storage = Arc::get_mut(storage).ok_or(TensorError::Shared)?;
                storage.device.fill(&mut storage.buffer, byte)?;
            }
            Storage::External(_) => return Err(TensorError::Shared.into()),
        }
        Ok(())
    }

    /// Sets every byte of the elements of a tensor on a GPU, whoever shares them: the tuner does so before a candidate writes them. What
    /// lies between them, or beside them in the storage, is somebody else's.
    pub(crate) fn set_bytes(&self, device: &CudaDevice, byte: u8) -> Result<(), Error> {
        match Region::of(self).filter(|_| self.ordinal().is_some()) {
            // SAFETY: the storage is alive as long as this is; work on it is ordered by the stream.
            Some(region) => unsafe { region.fill(device, byte) },
            None => Ok(()),
        }
    }

    /// A copy of the elements of a tensor on a GPU, to be put back with [`restore`](Saved::restore).
    pub(crate) fn save(&self, device: &CudaDevice) -> Result<Saved, Error> {
        let Some(region) = Region::of(self).filter(|_| self.ordinal().is_some()) else {
            return Ok(Saved(None));
        };
        let packed = device.uninit(region.bytes() as usize)?;
        // SAFETY: the storage is alive as long as this is, and the buffer has as many bytes; work on both is ordered by the stream.
        unsafe { region.copy(device, packed.address(), Copy::Save)? };
        Ok(Saved(Some((region, packed))))
    }

    /// Sets every element of a dense tensor on `device` to the 32-bit word `word`, once the work on its stream is done. A dtype of
    /// half that size gets two elements a word.
    pub(crate) fn fill_words(&mut self, device: &CudaDevice, word: u32) -> Result<(), Error> {
        debug_assert!(self.is_dense());
        let bytes = self.elements() * self.dtype.size();
        if let Some(address) = self.device_pointer() {
            // SAFETY: the view is dense, so that the bytes from its address on are its own; work on it is ordered by the stream.
            unsafe { device.set_words(address, word, bytes / 4)? };
        }
        Ok(())
    }

    fn is_on(&self, device: &Device) -> bool {
        self.ordinal() == device.as_cuda().map(|device| device.info().ordinal)
    }

    /// Where it is, for messages: `the CPU` or `cuda:0`.
    pub(crate) fn place(&self) -> String {
        place_name(self.ordinal())
    }

    /// The GPU it is on; `None` on the CPU.
    pub(crate) fn ordinal(&self) -> Option<usize> {
        match &self.storage {
            Storage::Host(_) => None,
            Storage::Cuda(storage) => Some(storage.device.info().ordinal),
            Storage::External(memory) => Some(memory.ordinal),
        }
    }

    /// The GPU it is on, with its stream; `None` on the CPU.
    pub(crate) fn cuda_device(&self) -> Result<Option<CudaDevice>, Error> {
        Ok(match &self.storage {
            Storage::Host(_) => None,
            Storage::Cuda(storage) => Some(storage.device.clone()),
            Storage::External(memory) => Some(memory.device()?),
        })
    }

    /// The device address of the first element; `None` on the CPU.
    pub(crate) fn device_pointer(&self) -> Option<u64> {
        match &self.storage {
            Storage::Host(_) => None,
            Storage::Cuda(storage) => Some(storage.buffer.address()),
            Storage::External(memory) => Some(memory.address),
        }
    }

    /// Refuses a tensor that is elsewhere than `device`.
    pub(crate) fn expect_place(&self, what: &str, device: &Device) -> Result<(), TensorError> {
        if self.is_on(device) {
            return Ok(());
        }
        let needed = place_name(device.as_cuda().map(|device| device.info().ordinal));
        Err(TensorError::Place { what: what.to_owned(), found: self.place(), needed })
    }
}

/// What the elements of a tensor held.
pub(crate) struct Saved(Option<(Region, DeviceBuffer)>);

impl Saved {
    /// Puts back what `tensor`, which this is of, held.
    pub(crate) fn restore(&self, tensor: &Tensor, device: &CudaDevice) -> Result<(), Error> {
        match &self.0 {
            // SAFETY: as for `save`: the tensor's own region, while it is there.
            Some((region, packed)) if Region::of(tensor).as_ref() == Some(region) => unsafe {
                region.copy(device, packed.address(), Copy::Restore)
            },
            _ => Ok(()),
        }
    }
}

/// A GPU's name in messages, or the CPU's.
pub(crate) fn place_name(ordinal: Option<usize>) -> String {
    ordinal.map_or_else(|| "the CPU".to_owned(), |ordinal| format!("cuda:{ordinal}"))
}
