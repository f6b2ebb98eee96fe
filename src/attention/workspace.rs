//! Memory for calls that allocate nothing: for loops, for streams of one's own and for CUDA graphs.

use super::executor::Executor;
use super::{MaskLists, Output, Rule, Shapes};
use crate::Tensor;
use std::sync::Arc;

/// Memory for calls of one shape, of [`Plan::workspace`](super::Plan::workspace): the lists and the scratch of the
/// selection, and the output.
pub struct Workspace {
    pub(super) output: Output,
    /// Those of the output's mask.
    pub(super) lists: MaskLists,
    pub(super) scratch: Tensor,
    pub(super) shapes: Shapes,
    /// Of the attention that it was made for.
    pub(super) rule: Arc<Rule>,
    /// Its kernels and captures, which a graph of calls into this workspace goes on reading.
    pub(super) _executor: Arc<dyn Executor>,
}

impl Workspace {
    /// What the last [`Plan::forward_into`](super::Plan::forward_into) wrote; unspecified before the first.
    pub fn output(&self) -> &Output {
        &self.output
    }
}
