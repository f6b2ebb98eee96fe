//! Calls over nothing: what they give depends on the sizes alone, and no kernel is launched.

use super::{Call, Executor};
use crate::attention::memory::{Fill, Memory};
use crate::attention::work::{Attend, Backward, Forward, Inputs, Kind, Ranked, Select};
use crate::attention::{MaskLists, Output};
use crate::device::CudaDevice;
use crate::operands::{Gradients, Upstream};
use crate::tensor::host_count;
use crate::{BlockMask, DType, Error, Tensor};

/// Fills in what there is to fill.
pub(in crate::attention) struct Nothing;

impl Executor for Nothing {
    fn mask(&self, call: &Call<'_>, _: Ranked<'_>) -> Result<BlockMask, Error> {
        Ok(empty_lists(call)?.into_mask(call.rule, call.sizes))
    }

    fn attend(&self, call: &Call<'_>, _: Inputs<'_>, _: &BlockMask) -> Result<(Tensor, Tensor), Error> {
        unattended(call)
    }

    fn backward(
        &self,
        call: &Call<'_>,
        Upstream { q, k, v, .. }: Upstream<'_>,
        _: &BlockMask,
    ) -> Result<Gradients, Error> {
        let zeros = |like: &Tensor| Tensor::zeros_on(call.device, like.dtype(), like.shape());
        Ok(Gradients { dq: zeros(q)?, dk: zeros(k)?, dv: zeros(v)? })
    }

    /// What a workspace is made with is the result.
    fn forward_into(
        &self,
        _: &Call<'_>,
        _: Inputs<'_>,
        _: &mut Output,
        _: &mut MaskLists,
        _: &mut Tensor,
    ) -> Result<(), Error> {
        Ok(())
    }

    fn run(&self, call: &Call<'_>, work: Kind<'_>, _: &mut Tensor) -> Result<(), Error> {
        let cuda = call.cuda()?;
        match work {
            Kind::Forward { forward: Forward { out, lse, .. }, .. } => fill(cuda, out, lse),
            Kind::Attend(Attend { lists, out, lse, .. }) => {
                lists.check_unread(call.device, call.sizes)?;
                fill(cuda, out, lse)
            }
            Kind::Select(Select { lists, .. }) => {
                lists.each().try_for_each(|index| index.counts.fill_words(cuda, 0))
            }
            Kind::Backward(Backward { lists, gradients, .. }) => {
                lists.check_unread(call.device, call.sizes)?;
                let Gradients { dq, dk, dv } = gradients;
                [dq, dk, dv].into_iter().try_for_each(|gradient| gradient.fill_words(cuda, 0))
            }
        }
    }
}

/// Lists of no blocks.
pub(in crate::attention) fn empty_lists(call: &Call<'_>) -> Result<MaskLists, Error> {
    let mut memory = Memory::Device { device: call.device, fill: Fill::Empty };
    MaskLists::make(call.rule, call.sizes, true, &mut memory)
}

/// `out` and `lse` of queries that attend to nothing: 0, and the logarithm of nothing.
pub(in crate::attention) fn unattended(call: &Call<'_>) -> Result<(Tensor, Tensor), Error> {
    let &Call { device, rule, sizes, .. } = call;
    let rows = [sizes.batch, sizes.heads, sizes.seq_q];
    let out = Tensor::zeros_on(device, rule.dtype, &[rows[0], rows[1], rows[2], rule.value_dim.get()])?;
    let Some(cuda) = device.as_cuda() else {
        let lse = vec![f32::NEG_INFINITY; host_count(&rows, DType::F32)?];
        return Ok((out, Tensor::from_slice(&lse, &rows)?));
    };
    let mut lse = Tensor::uninit(device, DType::F32, &rows)?;
    lse.fill_words(cuda, f32::NEG_INFINITY.to_bits())?;
    Ok((out, lse))
}

/// The same in memory that there is.
fn fill(cuda: &CudaDevice, out: &mut Tensor, lse: &mut Tensor) -> Result<(), Error> {
    debug_assert_eq!(lse.dtype(), DType::F32);
    out.fill_words(cuda, 0)?;
    lse.fill_words(cuda, f32::NEG_INFINITY.to_bits())
}
