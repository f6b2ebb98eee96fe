//! The device functions of a launch: their captures as bytes.

use super::slices::Slices;
use crate::codegen::KernelSpec;
use crate::codegen::lower::{CaptureValue, DeviceFunction};
use crate::device::{CudaDevice, DeviceError};
use crate::{DeviceFn, Error, MaskMod, ScoreMod};
use std::fmt;
use std::sync::Arc;

/// A device function for a slot of a kernel's `functions { … }`.
#[derive(Clone)]
pub enum Function {
    /// For a slot of kind `ScoreMod`.
    Score(Arc<dyn ScoreMod>),
    /// For a slot of kind `MaskMod`.
    Mask(Arc<dyn MaskMod>),
}

impl Function {
    /// A score function, with its captures.
    pub fn score(function: impl ScoreMod) -> Self {
        Function::Score(Arc::new(function))
    }

    /// A mask function, with its captures.
    pub fn mask(function: impl MaskMod) -> Self {
        Function::Mask(Arc::new(function))
    }

    fn device_fn(&self) -> &dyn DeviceFn {
        match self {
            Function::Score(function) => function,
            Function::Mask(function) => function,
        }
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Function").field(&self.device_fn().name()).finish()
    }
}

/// The second argument of kernels that call device functions: the functors one after another, as C lays them out.
pub struct FunctionArgs {
    bytes: Vec<u8>,
    /// Of the functions' CUDA text: a kernel with other functions must not read these bytes.
    hash: blake3::Hash,
    /// For checks on the host.
    functions: Vec<Function>,
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
        functions: &[Option<Function>],
    ) -> Result<Self, Error> {
        let (mut bytes, mut slices) = (Vec::new(), Slices::new(device)?);
        let mut widest = 1;
        for ((_, parsed), function) in spec.functions().iter().zip(functions) {
            let (functor, align) = match (parsed, function) {
                (Some(parsed), Some(function)) => {
                    pack(&mut slices, parsed, &function.device_fn().captures())?
                }
                // An absent functor holds one unused word.
                _ => (vec![0; 4], 4),
            };
            bytes.resize(bytes.len().next_multiple_of(align), 0);
            bytes.extend(functor);
            widest = widest.max(align);
        }
        bytes.resize(bytes.len().next_multiple_of(widest), 0);
        let functions = functions.iter().flatten().cloned().collect();
        Ok(FunctionArgs { bytes, hash: functions_hash(spec), functions, slices: Arc::new(slices) })
    }

    /// The first score function, where there is one.
    pub(super) fn score_mod(&self) -> Option<&dyn ScoreMod> {
        self.functions.iter().find_map(|function| match function {
            Function::Score(function) => Some(&**function),
            Function::Mask(_) => None,
        })
    }

    /// The first mask function, where there is one.
    pub(super) fn mask_mod(&self) -> Option<&dyn MaskMod> {
        self.functions.iter().find_map(|function| match function {
            Function::Mask(function) => Some(&**function),
            Function::Score(_) => None,
        })
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
