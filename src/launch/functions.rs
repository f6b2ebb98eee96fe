//! The device functions of a launch: their captures as bytes, and the GPU memory slice captures live in.

use crate::codegen::KernelSpec;
use crate::codegen::lower::{CaptureValue, DeviceFunction};
use crate::device::{CudaDevice, DeviceBuffer};
use crate::{DeviceFn, Error};
use std::sync::{Mutex, PoisonError};

/// The second argument of kernels that call device functions: the functors one after another, as C lays them out.
#[derive(Debug)]
pub struct FunctionArgs {
    bytes: Vec<u8>,
    /// Of the functions' CUDA text: a kernel with other functions must not read these bytes.
    hash: blake3::Hash,
    /// Kept alive for the launches.
    slices: Vec<DeviceBuffer>,
    device: CudaDevice,
}

/// What a kernel and its function arguments must agree on.
pub(super) fn functions_hash(spec: &KernelSpec) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (_, function) in spec.functions() {
        let text = function.as_ref().map_or_else(String::new, |function| function.cuda());
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize()
}

/// Slices of functions that are gone. Launches on a stream of the caller's may still read them, and to wait for those at
/// any moment would break the capture of a graph: they are freed when the next functions are laid out.
static PARKED: Mutex<Vec<(CudaDevice, Vec<DeviceBuffer>)>> = Mutex::new(Vec::new());

impl Drop for FunctionArgs {
    fn drop(&mut self) {
        if !self.slices.is_empty() {
            let slices = std::mem::take(&mut self.slices);
            PARKED.lock().unwrap_or_else(PoisonError::into_inner).push((self.device.clone(), slices));
        }
    }
}

/// Frees what is parked on a GPU, once its work is done; where that cannot be known it stays.
fn free_parked(device: &CudaDevice) {
    let mut parked = PARKED.lock().unwrap_or_else(PoisonError::into_inner);
    let here = |(of, _): &(CudaDevice, Vec<DeviceBuffer>)| of.info().ordinal == device.info().ordinal;
    if !parked.iter().any(here) {
        return;
    }
    match device.context().synchronize() {
        Ok(()) => parked.retain(|entry| !here(entry)),
        Err(error) => tracing::debug!(%error, "captures are freed another time"),
    }
}

impl FunctionArgs {
    /// Lays out the captures of `functions`, one for each slot of `spec` in order, and copies slices to the GPU.
    ///
    /// # Errors
    /// [`Error::Capture`] when captures do not match the function's parameters; a device error when a copy fails.
    pub fn new(
        device: &CudaDevice,
        spec: &KernelSpec,
        functions: &[Option<&dyn DeviceFn>],
    ) -> Result<Self, Error> {
        free_parked(device);
        let (hash, device_of) = (functions_hash(spec), device.clone());
        let mut args = FunctionArgs { bytes: Vec::new(), hash, slices: Vec::new(), device: device_of };
        let mut widest = 1;
        for ((_, parsed), function) in spec.functions().iter().zip(functions) {
            let (bytes, align) = match (parsed, function) {
                (Some(parsed), Some(function)) => args.pack(device, parsed, &function.captures())?,
                // An absent functor holds one unused word.
                _ => (vec![0; 4], 4),
            };
            args.bytes.resize(args.bytes.len().next_multiple_of(align), 0);
            args.bytes.extend(bytes);
            widest = widest.max(align);
        }
        args.bytes.resize(args.bytes.len().next_multiple_of(widest), 0);
        Ok(args)
    }

    fn pack(
        &mut self,
        device: &CudaDevice,
        function: &DeviceFunction,
        captures: &[CaptureValue],
    ) -> Result<(Vec<u8>, usize), Error> {
        let mut pointers = Vec::new();
        for capture in captures {
            let bytes: &[u8] = match capture {
                CaptureValue::F32s(values) => bytemuck::cast_slice(values),
                CaptureValue::I32s(values) => bytemuck::cast_slice(values),
                CaptureValue::U32s(values) => bytemuck::cast_slice(values),
                _ => continue,
            };
            let buffer = device.upload(bytes)?;
            pointers.push(buffer.address());
            self.slices.push(buffer);
        }
        Ok((function.pack(captures, &pointers)?, function.layout().align))
    }

    /// The hash of the functions these are the captures of.
    pub(super) fn hash(&self) -> &blake3::Hash {
        &self.hash
    }

    /// The bytes of the struct `Functions`.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
