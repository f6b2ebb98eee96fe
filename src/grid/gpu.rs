//! The kernel that moves rows, with the order in GPU memory.

use super::TokenGrid;
use super::apply::Way;
use crate::device::CudaDevice;
use crate::kernels::regroup;
use crate::launch::{Outputs, Request, Tolerance, Tuned};
use crate::tune::{Bucket, Policy, Workload};
use crate::{DType, Device, Error, Tensor};
use std::sync::PoisonError;

/// What a grid has put on GPUs.
#[derive(Default)]
pub(super) struct OnGpu {
    /// The order and its inverse, by GPU.
    lists: Vec<(usize, [Tensor; 2])>,
    /// The kernel, by GPU and dtype.
    kernels: Vec<((usize, DType), Tuned)>,
}

impl TokenGrid {
    /// Moves rows on a GPU. Launches only, once the kernel is chosen and the order is there.
    pub(super) fn on_gpu(
        &self,
        cuda: &CudaDevice,
        x: &Tensor,
        out: &mut Tensor,
        way: Way,
    ) -> Result<(), Error> {
        if x.elements() == 0 {
            return Ok(());
        }
        let _current = cuda.enter()?;
        let (kernel, list) = self.prepared(cuda, x.dtype(), way)?;
        let &[batch, heads, tokens, _] = x.shape() else { unreachable!("checked by the caller") };
        let bucket = Bucket::of(&Workload { batch, heads, seq_q: tokens, seq_kv: tokens, density: 1.0 });
        let outputs = kernel.outputs(bucket, || Outputs::new(vec![out.clone()], Tolerance::Exact));
        // The tuner takes elements with all bits set for ones that were not written: data that hold such elements are not tuned on.
        // They are looked at on another stream than the one that writes them, so that one is waited for; during a capture nothing
        // is tuned anyway.
        let outputs = match outputs {
            Some(outputs) if !cuda.is_capturing()? => {
                cuda.synchronize()?;
                (!holds_all_ones(x)?).then_some(outputs)
            }
            _ => None,
        };
        kernel.run(bucket, outputs, &mut |kernel| {
            // SAFETY: an entry that is no row gives zeros; all work is on one stream.
            unsafe { kernel.launch(&regroup::Args { x, order: &list, out: &mut *out }, None) }
        })
    }

    /// The kernel on the device's stream, and the list it goes by.
    fn prepared(&self, cuda: &CudaDevice, dtype: DType, way: Way) -> Result<(Tuned, Tensor), Error> {
        let ordinal = cuda.info().ordinal;
        let mut known = self.gpus.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = match known.kernels.iter().find(|(key, _)| *key == (ordinal, dtype)) {
            Some((_, kernel)) => kernel.on(cuda),
            None => {
                let request = Request::new(&regroup::SOURCE).value("T", dtype);
                let kernel = Tuned::new(cuda, &request, Policy::from_env()?)?;
                known.kernels.push(((ordinal, dtype), kernel.clone()));
                kernel
            }
        };
        let place = match known.lists.iter().position(|(on, _)| *on == ordinal) {
            Some(place) => place,
            None => {
                // On the GPU's own stream, and waited for: it is ready for every other.
                let device = Device::cuda(ordinal)?;
                let upload = |list: &[i32]| Tensor::from_slice(list, &[list.len()])?.to(&device);
                known.lists.push((ordinal, [upload(self.order())?, upload(self.inverse())?]));
                known.lists.len() - 1
            }
        };
        let [order, inverse] = &known.lists[place].1;
        Ok((kernel, if way == Way::Regroup { order } else { inverse }.clone()))
    }
}

fn holds_all_ones(x: &Tensor) -> Result<bool, Error> {
    Ok(match x.dtype() {
        DType::F16 => x.to_vec::<half::f16>()?.iter().any(|x| x.to_bits() == u16::MAX),
        DType::Bf16 => x.to_vec::<half::bf16>()?.iter().any(|x| x.to_bits() == u16::MAX),
        _ => x.to_vec::<f32>()?.iter().any(|x| x.to_bits() == u32::MAX),
    })
}
