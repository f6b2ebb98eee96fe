//! A call of an attention, as far as tuning goes.

use crate::{BlockSize, DType, HeadDim, Selection, Tail};

/// The call that [`Error::CacheOnly`](crate::Error::CacheOnly) is about: made once where kernels may be compiled and timed, it leaves
/// in the cache what it needs.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Call {
    /// The batch size.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Queries.
    pub seq_q: usize,
    /// Keys.
    pub seq_kv: usize,
    /// The width of q and k.
    pub head_dim: HeadDim,
    /// The width of v and the output.
    pub value_dim: HeadDim,
    /// The dtype of q, k and v.
    pub dtype: DType,
    /// The sparse block.
    pub blocks: BlockSize,
    /// The rule that selects blocks, where there is one.
    pub selection: Option<Selection>,
    /// The share of blocks that the mask keeps, where the host knows it.
    pub density: Option<f64>,
    /// What stands for dropped blocks.
    pub tail: Tail,
    /// Whether the attention has a score or a mask function.
    pub has_functions: bool,
    /// Whether it was a call of the backward.
    pub backward: bool,
}
