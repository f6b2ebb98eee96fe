//! The kernel that moves rows, with the order in GPU memory.

use super::TokenGrid;
use super::apply::Way;
use crate::device::CudaDevice;
use crate::kernels::regroup;
use crate::launch::{Kernel, Outputs, Request, Tolerance, Tuned};
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
        let (device, dtype) = (Device::Cuda(cuda.clone()), x.dtype());
        let outputs = kernel.outputs(bucket, || {
            Outputs::new(vec![out.clone()], Tolerance::Exact).with_oracle(|kernel| {
                check(&device, dtype, kernel).or_else(|error| Ok(Err(error.to_string())))
            })
        });
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
                let kernel = Tuned::new(cuda, &request, cuda.services().policy()?)?;
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

/// Says what is wrong with a kernel: rows of widths that are copied whole words at a time and of ones that are not, in an order of
/// which two entries are no rows, against the same on the host.
fn check(device: &Device, dtype: DType, kernel: &Kernel) -> Result<Result<(), String>, Error> {
    const ROWS: usize = 53;
    let order: Vec<i32> =
        (0..ROWS as i32).rev().map(|row| if row % 26 == 7 { row - 60 } else { row }).collect();
    let list = Tensor::from_slice(&order, &[ROWS])?.to(device)?;
    for width in [1, 37, 72] {
        let shape = [2, 3, ROWS, width];
        // Whole numbers that a half type holds.
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i % 251 + 1) as f32).collect();
        let x = match dtype {
            DType::F16 => Tensor::from_slice(
                &values.iter().map(|&x| half::f16::from_f32(x)).collect::<Vec<_>>(),
                &shape,
            ),
            DType::Bf16 => Tensor::from_slice(
                &values.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>(),
                &shape,
            ),
            _ => Tensor::from_slice(&values, &shape),
        }?;
        let mut out = Tensor::uninit(device, dtype, &shape)?;
        out.fill_bytes(0xFF)?;
        let args = regroup::Args { x: &x.to(device)?, order: &list, out: &mut out };
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { kernel.launch(&args, None)? };
        let found = out.to_f32_vec()?;
        let moved = |(i, &found): (usize, &f32)| {
            let (head, place, column) = (i / width / ROWS, i / width % ROWS, i % width);
            let row = usize::try_from(order[place]).ok();
            found == row.map_or(0.0, |row| values[(head * ROWS + row) * width + column])
        };
        if let Some(at) = found.iter().enumerate().position(|element| !moved(element)) {
            return Ok(Err(format!(
                "its rows differ from those moved on the host, first at {at} of {shape:?}"
            )));
        }
    }
    Ok(Ok(()))
}

fn holds_all_ones(x: &Tensor) -> Result<bool, Error> {
    Ok(match x.dtype() {
        DType::F16 => x.to_vec::<half::f16>()?.iter().any(|x| x.to_bits() == u16::MAX),
        DType::Bf16 => x.to_vec::<half::bf16>()?.iter().any(|x| x.to_bits() == u16::MAX),
        _ => x.to_vec::<f32>()?.iter().any(|x| x.to_bits() == u32::MAX),
    })
}
