//! What the kernels that select blocks pass to one another.

use crate::attention::{MaskLists, Rule, Sizes};
use crate::tune::Bucket;
use crate::{BlockIndex, Tensor};

/// What every kernel of a call goes by.
pub(super) struct Call<'a> {
    pub(super) rule: &'a Rule,
    pub(super) sizes: &'a Sizes,
}

impl Call<'_> {
    /// What the tuner goes by: what is selected is on the GPU, and its density is not known here.
    pub(super) fn bucket(&self) -> Bucket {
        self.sizes.bucket(self.rule, None)
    }
}

/// What the selecting kernels read beside the scores, and write.
pub(super) struct Parts<'a> {
    pub(super) classes: Option<&'a Tensor>,
    pub(super) keep: &'a mut Tensor,
    pub(super) full_keep: &'a mut Option<Tensor>,
    /// The order of the rows, and the heads' counters.
    pub(super) order: Option<(&'a mut Tensor, &'a mut Tensor)>,
    pub(super) lists: &'a mut MaskLists,
}

pub(super) fn parts_of(index: &mut Option<BlockIndex>) -> (Option<&mut Tensor>, Option<&mut Tensor>) {
    match index {
        Some(BlockIndex { counts, indices }) => (Some(counts), Some(indices)),
        None => (None, None),
    }
}
