//! The sizes of a call, in tokens and in blocks.

use super::Rule;
use crate::Tensor;
use crate::tune::{Bucket, Workload};

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
    /// Of tensors that were checked.
    pub(super) fn of(rule: &Rule, q: &Tensor, k: &Tensor) -> Self {
        let [batch, heads, seq_q, head_dim] = [0, 1, 2, 3].map(|axis| q.shape()[axis]);
        Sizes {
            batch,
            heads,
            kv_heads: k.shape()[1],
            seq_q,
            seq_kv: k.shape()[2],
            head_dim,
            q_blocks: seq_q.div_ceil(rule.blocks.q()),
            kv_blocks: k.shape()[2].div_ceil(rule.blocks.kv()),
        }
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
}
