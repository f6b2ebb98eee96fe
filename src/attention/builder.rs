//! Describing an attention.

use super::executor::{Cpu, Executor};
use super::gpu::Pipeline;
use super::{Attention, HeadDim, Rule};
use crate::device::Device;
use crate::tail::Tail;
use crate::tensor::TensorError;
use crate::tune::Policy;
use crate::{BlockSize, DType, Error, MaskMod, ScoreMod, Selection};
use std::sync::Arc;

/// Collects what an attention computes; [`build`](Self::build) makes it for a device.
#[must_use = "call `.build(&device)`"]
#[derive(Debug)]
pub struct AttentionBuilder {
    head_dim: HeadDim,
    value_dim: Option<HeadDim>,
    dtype: DType,
    blocks: BlockSize,
    selection: Option<Selection>,
    scale: Option<f32>,
    score_mod: Option<Arc<dyn ScoreMod>>,
    mask_mod: Option<Arc<dyn MaskMod>>,
    tail: Tail,
    policy: Option<Policy>,
}

impl AttentionBuilder {
    pub(super) fn new(head_dim: HeadDim, dtype: DType) -> Self {
        AttentionBuilder {
            head_dim,
            value_dim: None,
            dtype,
            blocks: BlockSize::default(),
            selection: None,
            scale: None,
            score_mod: None,
            mask_mod: None,
            tail: Tail::None,
            policy: None,
        }
    }

    /// The last dimension of v and the output, where it is not that of q and k: multi-head latent attention has 192 and 128.
    pub fn value_dim(mut self, value_dim: HeadDim) -> Self {
        self.value_dim = Some(value_dim);
        self
    }

    /// Keeps only the blocks this rule selects. Without one, every block the mask function admits is kept.
    pub fn select(mut self, selection: Selection) -> Self {
        self.selection = Some(selection);
        self
    }

    /// The sparse block; 128 queries by 64 keys when not given.
    pub fn blocks(mut self, blocks: BlockSize) -> Self {
        self.blocks = blocks;
        self
    }

    /// The factor of the products of q and k; `1 / sqrt(head_dim)` when not given.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Changes every scaled score before the softmax. The selection looks at the scores without it.
    pub fn score_mod(mut self, function: impl ScoreMod) -> Self {
        self.score_mod = Some(Arc::new(function));
        self
    }

    /// Says which keys a query may attend to, element by element. Blocks it drops as a whole are never looked at, and
    /// blocks it keeps as a whole do not pay for it. A block that it keeps in part is selected by the mean of the keys that it keeps for
    /// at least one query of the query block: what dropped keys hold, padding say, decides nothing. Their values must be
    /// numbers all the same, and for a backward they themselves: 0 · NaN is NaN.
    pub fn mask_mod(mut self, function: impl MaskMod) -> Self {
        self.mask_mod = Some(Arc::new(function));
        self
    }

    /// What stands for the blocks that the selection drops, or a mask of one's own: see [`tail`](crate::tail). Of a mask function, blocks
    /// that it keeps as a whole take part; what it forbids, in part or as a whole, does not.
    pub fn tail(mut self, tail: Tail) -> Self {
        self.tail = tail;
        self
    }

    /// How schedules are chosen on a GPU; as the device's [`Services`](crate::services::Services) say when not given.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Makes the attention for a device. On a GPU the kernels are compiled and tuned at
    /// the first call of a size, and found in the cache by every later process.
    ///
    /// # Errors
    /// [`Error::Tensor`] unless the dtype is f16 or bf16, [`Error::Select`] for a share outside (0, 1], [`Error::Tail`] for a tail beside
    /// a score function, or over a number of keys that is no number of blocks;
    /// [`Error::Function`] when a device function does not lower; on a GPU the errors of [`launch::load`](crate::launch::load).
    pub fn build(self, device: &Device) -> Result<Attention, Error> {
        if !matches!(self.dtype, DType::F16 | DType::Bf16) {
            let needed = "f16 or bf16 for q, k and v".to_owned();
            return Err(TensorError::DType { what: "the attention".into(), found: self.dtype, needed }.into());
        }
        let rule = Rule {
            head_dim: self.head_dim,
            value_dim: self.value_dim.unwrap_or(self.head_dim),
            dtype: self.dtype,
            blocks: self.blocks,
            selection: self.selection,
            scale: self.scale.unwrap_or_else(|| self.head_dim.default_scale()),
            score_mod: self.score_mod,
            mask_mod: self.mask_mod,
            tail: self.tail,
        };
        rule.validate()?;
        let executor: Arc<dyn Executor> = match device.as_cuda() {
            Some(device) => {
                let policy = self.policy.map_or_else(|| device.services().policy(), Ok)?;
                // Captures go to the GPU here.
                let _current = device.enter()?;
                Arc::new(Pipeline::new(device, &rule, policy)?)
            }
            None => Arc::new(Cpu),
        };
        Ok(Attention { device: device.clone(), rule: Arc::new(rule), executor })
    }
}
