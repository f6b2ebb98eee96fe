//! The device functions of a launch: their captures as bytes.

use super::slices::Slices;
use crate::codegen::KernelSpec;
use crate::codegen::lower::{CaptureValue, DeviceFunction};
use crate::device::{CudaDevice, DeviceError};
use crate::{DeviceFn, Error};
use std::fmt;
use std::sync::Arc;

/// The second argument of kernels that call device functions: the functors one after another, as C lays them out.
pub struct FunctionArgs {
    bytes: Vec<u8>,
    /// Of the functions' CUDA text: a kernel with other functions must not read these bytes.
    hash: blake3::Hash,
    /// Kept alive for the launches.
    slices: Arc<Slices>,
}

impl fmt::Debug for FunctionArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionArgs").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
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
        let (mut bytes, mut slices) = (Vec::new(), Slices::new(device)?);
        let mut widest = 1;
        for ((_, parsed), function) in spec.functions().iter().zip(functions) {
            let (functor, align) = match (parsed, function) {
                (Some(parsed), Some(function)) => pack(&mut slices, parsed, &function.captures())?,
                // An absent functor holds one unused word.
                _ => (vec![0; 4], 4),
            };
            bytes.resize(bytes.len().next_multiple_of(align), 0);
            bytes.extend(functor);
            widest = widest.max(align);
        }
        bytes.resize(bytes.len().next_multiple_of(widest), 0);
        Ok(FunctionArgs { bytes, hash: functions_hash(spec), slices: Arc::new(slices) })
    }

    /// The hash of the functions these are the captures of.
    pub(super) fn hash(&self) -> &blake3::Hash {
        &self.hash
    }

    /// The bytes of the struct `Functions`.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// The GPU that the captures are on, where that is another one than `device`.
    pub(super) fn elsewhere(&self, device: &CudaDevice) -> Option<usize> {
        (!self.slices.are_on(device)).then(|| self.slices.ordinal())
    }

    /// To be called after each launch that reads these.
    pub(super) fn launched(&self, device: &CudaDevice) -> Result<(), DeviceError> {
        self.slices.launched(device)
    }
}

/// A function's captures as its functor has them, and their alignment.
fn pack(
    slices: &mut Slices,
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
        pointers.push(slices.upload(bytes)?);
    }
    Ok((function.pack(captures, &pointers)?, function.layout().align))
}
