//! Masks of block means that the caller has made.

use super::gpu::Ranked;
use super::{Attention, Sizes};
use crate::operands::Shape;
use crate::tensor::TensorError;
use crate::{BlockMask, DType, Error, SeqLens, Tensor, cpu};

impl Attention {
    /// The mask that [`mask`](Self::mask) would make of tensors with these block means: for a kernel of the caller's that goes
    /// over q and k anyway, rotary embedding say, and can add up the rows on its way. What reading q and k once more costs is
    /// two thirds of a mask's time and more.
    ///
    /// `q_mean` is f32 `[batch, heads, ceil(seq_q / block_q), head_dim]` and `k_mean` f32
    /// `[batch, kv_heads, ceil(seq_kv / block_kv), head_dim]`: row i is the mean, in f32, of the rows from `i · block` on, as many
    /// of `block` as exist. With a mask function every block scores by these means, whichever of their keys it keeps: leave keys that
    /// hold no numbers out of them. Means that are not aligned to 16 bytes are refused on a GPU.
    ///
    /// # Errors
    /// [`Error::Tensor`] for means of other dtypes or shapes, [`MaskError::Grid`](crate::MaskError::Grid) for another number of blocks than the
    /// sequences have; otherwise as [`mask`](Self::mask).
    pub fn mask_of_means(&self, q_mean: &Tensor, k_mean: &Tensor, seqs: SeqLens) -> Result<BlockMask, Error> {
        let (seq_q, seq_kv) = seqs.pair();
        let rule = &self.rule;
        let shape = Shape::of_means(q_mean, k_mean)?;
        rule.blocks.check_grid([shape.seq_q, shape.seq_kv], (seq_q, seq_kv))?;
        self.check_sizes(shape.d, [seq_q, seq_kv])?;
        for (what, tensor) in [("q_mean", q_mean), ("k_mean", k_mean)] {
            tensor.expect_place(what, &self.device)?;
        }
        let sizes = Sizes {
            batch: shape.batch,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            seq_q,
            seq_kv,
            head_dim: shape.d,
            q_blocks: shape.seq_q,
            kv_blocks: shape.seq_kv,
        };
        let on_host;
        let (q_mean, k_mean) = match &self.pipeline {
            Some(pipeline) if q_mean.elements() > 0 && k_mean.elements() > 0 => {
                return self.selected(pipeline, &sizes, Ranked::Means(q_mean, k_mean));
            }
            Some(_) => {
                on_host = (q_mean.to(&crate::Device::Cpu)?, k_mean.to(&crate::Device::Cpu)?);
                (&on_host.0, &on_host.1)
            }
            None => (q_mean, k_mean),
        };
        let means = (q_mean.to_f32_vec()?, k_mean.to_f32_vec()?);
        let shape = Shape { seq_q, seq_kv, ..shape };
        let mask_mod = rule.mask_mod.as_deref();
        cpu::mask_of_means(&means, &shape, rule.selection.as_ref(), rule.scale, rule.blocks, mask_mod)?
            .to(&self.device)
    }
}

impl Shape {
    /// Of block means, whose "sequences" are blocks.
    fn of_means(q_mean: &Tensor, k_mean: &Tensor) -> Result<Self, Error> {
        for (what, mean) in [("q_mean", q_mean), ("k_mean", k_mean)] {
            if mean.dtype() != DType::F32 {
                let (found, needed) = (mean.dtype(), "f32".into());
                return Err(TensorError::DType { what: what.into(), found, needed }.into());
            }
        }
        Shape::alike(q_mean, k_mean, None)
    }
}
