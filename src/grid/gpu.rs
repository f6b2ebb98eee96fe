//! The kernel that moves rows, with the order in GPU memory.

use super::TokenGrid;
use super::apply::Way;
use crate::device::CudaDevice;
use crate::kernels::regroup;
use crate::launch::{Request, Tuned};
use crate::tune::{Bucket, Workload};
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
        let args = regroup::Args { x, order: &list, out };
        // SAFETY: an entry that is no row gives zeros; all work is on one stream.
        unsafe { kernel.launch_in(bucket, &args, None) }
    }

    /// The kernel on the device's stream, and the list it goes by.
    fn prepared(&self, cuda: &CudaDevice, dtype: DType, way: Way) -> Result<(Tuned, Tensor), Error> {
        let ordinal = cuda.info().ordinal;
        let mut known = self.gpus.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = match known.kernels.iter().find(|(key, _)| *key == (ordinal, dtype)) {
            Some((_, kernel)) => kernel.on(cuda),
            None => {
                let request = Request::new(&regroup::SOURCE).value("T", dtype);
                let kernel = Tuned::new(cuda, &request)?;
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
