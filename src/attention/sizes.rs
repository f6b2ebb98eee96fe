//! The sizes of a call, in tokens and in blocks.

use super::Rule;
use crate::launch::TensorDecl;
use crate::operands::Shape;
use crate::tune::{Bucket, Workload};
use crate::{Error, Tensor};
use std::fmt;

/// The sizes of q and k that a [`Plan`](super::Plan) is for. Their head dimensions and dtype are the attention's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shapes {
    /// The batch size.
    pub batch: usize,
    /// Heads of q and of the output, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of k and v.
    pub kv_heads: usize,
    /// Queries.
    pub seq_q: usize,
    /// Keys.
    pub seq_kv: usize,
}

impl Shapes {
    /// Those of q `[batch, heads, seq_q, head_dim]` and k `[batch, kv_heads, seq_kv, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Tensor`] for tensors that do not belong together.
    pub fn of(q: &Tensor, k: &Tensor) -> Result<Self, Error> {
        Ok(Shape::alike(q, k, None)?.into())
    }
}

impl From<Shape> for Shapes {
    fn from(Shape { batch, heads, kv_heads, seq_q, seq_kv, .. }: Shape) -> Self {
        Shapes { batch, heads, kv_heads, seq_q, seq_kv }
    }
}

impl fmt::Display for Shapes {
    /// `batch 1, 12 heads over 4 key heads, 300 queries, 500 keys`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shapes { batch, heads, kv_heads, seq_q, seq_kv } = self;
        write!(f, "batch {batch}, {heads} heads over {kv_heads} key heads, {seq_q} queries, {seq_kv} keys")
    }
}

/// The sizes of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) seq_q: usize,
    pub(super) seq_kv: usize,
    pub(super) head_dim: usize,
    pub(super) q_blocks: usize,
    pub(super) kv_blocks: usize,
}

impl Sizes {
    pub(super) fn new(rule: &Rule, shapes: Shapes) -> Self {
        let Shapes { batch, heads, kv_heads, seq_q, seq_kv } = shapes;
        let (q_blocks, kv_blocks) = (seq_q.div_ceil(rule.blocks.q()), seq_kv.div_ceil(rule.blocks.kv()));
        let head_dim = rule.head_dim.get();
        Sizes { batch, heads, kv_heads, seq_q, seq_kv, head_dim, q_blocks, kv_blocks }
    }

    /// Of tensors that were checked.
    pub(super) fn of(rule: &Rule, q: &Tensor, k: &Tensor) -> Self {
        let [batch, heads, seq_q, _] = [0, 1, 2, 3].map(|axis| q.shape()[axis]);
        let (kv_heads, seq_kv) = (k.shape()[1], k.shape()[2]);
        Self::new(rule, Shapes { batch, heads, kv_heads, seq_q, seq_kv })
    }

    /// Those that a caller knows.
    pub(super) fn shapes(&self) -> Shapes {
        let &Sizes { batch, heads, kv_heads, seq_q, seq_kv, .. } = self;
        Shapes { batch, heads, kv_heads, seq_q, seq_kv }
    }

    /// Whether there is nothing to attend to, or nobody: no kernel is launched over no rows.
    pub(super) fn is_empty(&self) -> bool {
        let &Sizes { batch, heads, seq_q, seq_kv, .. } = self;
        [batch, heads, seq_q, seq_kv].contains(&0)
    }

    /// What the tuner goes by. The density is the mask's own where the host knows it, else what the rule asks for: a
    /// selected mask is on the GPU, and reading it would make every call wait.
    pub(super) fn bucket(&self, rule: &Rule, density: Option<f64>) -> Bucket {
        let asked = rule.selection.map_or(1.0, |selection| match (selection.k(), selection.p()) {
            (Some(k), _) => k,
            (None, p) => p.unwrap_or(1.0),
        });
        let &Sizes { batch, heads, seq_q, seq_kv, .. } = self;
        Bucket::of(&Workload { batch, heads, seq_q, seq_kv, density: density.unwrap_or(asked) })
    }

    /// The dimensions that the chain's declarations name, but for those of lists of other widths.
    pub(super) fn dims(&self) -> [(&'static str, usize); 9] {
        [
            ("head_dim", self.head_dim),
            ("batch", self.batch),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("seq_q", self.seq_q),
            ("seq_kv", self.seq_kv),
            ("q_blocks", self.q_blocks),
            ("kv_blocks", self.kv_blocks),
            ("words", self.kv_blocks.div_ceil(32)),
        ]
    }

    /// The shape of a kernel's argument in a call of these sizes, by its declaration.
    pub(super) fn shape(&self, decl: &TensorDecl) -> Vec<usize> {
        let dims = self.dims();
        let extent = |wanted| dims.iter().find(|(name, _)| *name == wanted).map(|(_, extent)| *extent);
        decl.shape(|dim| extent(dim).unwrap_or_else(|| unreachable!("no size of a call is `{dim}`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{backward_q, classify, pool, rank, score_partial, select, transpose};
    use crate::{Attention, BlockSize, DType, Device, HeadDim};

    /// Every argument that a call makes room for, in sizes that differ from each other.
    #[test]
    fn arguments_have_the_shapes_of_a_call() {
        let builder = Attention::builder(HeadDim::new(72).unwrap(), DType::Bf16).blocks(BlockSize::default());
        let rule = builder.build(&Device::cpu()).unwrap().rule;
        let sizes = Sizes::new(&rule, Shapes { batch: 2, heads: 6, kv_heads: 3, seq_q: 1000, seq_kv: 2900 });
        let (q_blocks, kv_blocks, words) = (8, 46, 2);
        use {rank::tensors as rows, transpose::tensors as columns};
        for (decl, shape) in [
            (&pool::tensors::Q_MEAN, &[2, 6, q_blocks, 72][..]),
            (&pool::tensors::K_MEAN, &[2, 3, kv_blocks, 72]),
            (&select::tensors::LOGITS, &[2, 6, q_blocks, kv_blocks]),
            (&score_partial::tensors::LOGITS, &[2, 6, q_blocks, kv_blocks]),
            (&classify::tensors::CLASSES, &[2, 6, q_blocks, kv_blocks]),
            (&select::tensors::KEEP, &[2, 6, q_blocks, words]),
            (&select::tensors::FULL_KEEP, &[2, 6, q_blocks, words]),
            (&select::tensors::ROW_ORDER, &[2, 6, q_blocks]),
            (&select::tensors::FINISHED, &[2, 6]),
            (&rows::KV_COUNTS, &[2, 6, q_blocks]),
            (&rows::KV_INDICES, &[2, 6, q_blocks, kv_blocks]),
            (&rows::FULL_KV_COUNTS, &[2, 6, q_blocks]),
            (&rows::FULL_KV_INDICES, &[2, 6, q_blocks, kv_blocks]),
            (&columns::Q_COUNTS, &[2, 6, kv_blocks]),
            (&columns::Q_INDICES, &[2, 6, kv_blocks, q_blocks]),
            (&columns::FULL_Q_COUNTS, &[2, 6, kv_blocks]),
            (&columns::FULL_Q_INDICES, &[2, 6, kv_blocks, q_blocks]),
            (&columns::KEEP, &[2, 6, q_blocks, words]),
            (&columns::FULL_KEEP, &[2, 6, q_blocks, words]),
            (&columns::KEY_ORDER, &[2, 6, kv_blocks]),
            (&columns::FINISHED, &[2, 6]),
            (&backward_q::tensors::DELTA, &[2, 6, 1000]),
        ] {
            assert_eq!(sizes.shape(decl), shape, "{}", decl.name);
            assert!(decl.dtype.is_some(), "{}", decl.name);
        }
    }
}
