//! The device functions of a launch: their captures as bytes, and the GPU memory slice captures live in.

use crate::codegen::KernelSpec;
use crate::codegen::lower::{CaptureValue, DeviceFunction};
use crate::device::{CudaDevice, DeviceBuffer};
use crate::{DeviceFn, Error};

/// The second argument of kernels that call device functions: the functors one after another, as C lays them out.
#[derive(Debug, Default)]
pub struct FunctionArgs {
    bytes: Vec<u8>,
    /// Kept alive for the launches.
    _slices: Vec<DeviceBuffer>,
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
        let mut args = FunctionArgs::default();
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
            self._slices.push(buffer);
        }
        Ok((function.pack(captures, &pointers)?, function.layout().align))
    }

    /// The bytes of the struct `Functions`.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
