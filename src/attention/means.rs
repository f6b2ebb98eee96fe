//! Masks of block means that the caller has made.

use super::work::Ranked;
use super::{Attention, Shapes};
use crate::operands::Shape;
use crate::{BlockMask, DType, Error, SelectError, SeqLens, Tensor};

impl Attention {
    /// The mask that [`mask`](Self::mask) would make of tensors with these block means: for a kernel of the caller's
    /// that goes over q and k anyway, rotary embedding say, and can add up the rows on its way. What reading q and k
    /// once more costs is two thirds of a mask's time and more.
    ///
    /// `q_mean` is f32 `[batch, heads, ceil(seq_q / block_q), head_dim]` and `k_mean` f32 `[batch, kv_heads,
    /// ceil(seq_kv / block_kv), head_dim]`: row i is the mean, in f32, of the rows from `i · block` on, as many of
    /// `block` as exist. With a mask function every block scores by these means, whichever of their keys it keeps:
    /// leave keys that hold no numbers out of them. Means that are not aligned to 16 bytes are refused on a GPU.
    ///
    /// # Errors
    /// [`Error::Tensor`] for means of other dtypes or shapes, [`MaskError::Grid`](crate::MaskError::Grid) for another
    /// number of blocks than the sequences have, [`SelectError::Keys`] for a rule that scores by keys; otherwise as [`mask`](Self::mask).
    pub fn mask_of_means(&self, q_mean: &Tensor, k_mean: &Tensor, seqs: SeqLens) -> Result<BlockMask, Error> {
        if self.rule.by_keys() {
            return Err(SelectError::Keys.into());
        }
        let (seq_q, seq_kv) = seqs.pair();
        // The "sequences" of block means are blocks.
        let shape = Shape::of_means(q_mean, k_mean)?;
        self.rule.blocks.check_grid([shape.seq_q, shape.seq_kv], (seq_q, seq_kv))?;
        let plan = self.plan(Shapes { seq_q, seq_kv, ..shape.into() })?;
        self.check_head_dim(shape.d)?;
        self.check_places([("q_mean", q_mean), ("k_mean", k_mean)])?;
        plan.mask(Ranked::Means { q_mean, k_mean })
    }
}

impl Shape {
    /// Of block means.
    fn of_means(q_mean: &Tensor, k_mean: &Tensor) -> Result<Self, Error> {
        for (what, mean) in [("q_mean", q_mean), ("k_mean", k_mean)] {
            mean.expect_dtype(what, DType::F32)?;
        }
        Shape::alike(q_mean, k_mean, None)
    }
}
