//! Block-sparse attention: build once for a head dimension and dtype, then call.
//!
//! ```
//! use tilewright::{Attention, DType, Device, HeadDim, Output, Tensor, top_k, top_p};
//! # let values: Vec<half::bf16> = (0..2 * 300 * 64).map(|i| half::bf16::from_f32((i as f32 * 0.37).sin())).collect();
//! # let (q, k, v) = (&values, &values, &values);
//! let attention = Attention::builder(HeadDim::D64, DType::Bf16)
//!     .select(top_k(0.05) | top_p(0.2))
//!     .build(&Device::cpu())?;
//! let shape = [1, 2, 300, 64]; // batch, heads, tokens, head dimension
//! let (q, k, v) = (Tensor::from_slice(q, &shape)?, Tensor::from_slice(k, &shape)?, Tensor::from_slice(v, &shape)?);
//! let Output { out, lse, mask } = attention.forward(&q, &k, &v)?;
//! assert_eq!((out.shape(), lse.shape()), (&shape[..], &shape[..3]));
//! println!("{:.1} % of the blocks dropped", 100.0 * mask.sparsity()?);
//! # Ok::<(), tilewright::Error>(())
//! ```
//!
//! An [`Attention`] is a rule. A [`Plan`] is that rule for one set of shapes: which kernels it has, whether they are
//! chosen, the scratch it wants, and calls into memory that there is.

mod advice;
mod builder;
mod check;
mod debug;
mod executor;
mod gpu;
mod lists;
mod means;
mod memory;
mod plan;
mod sizes;
mod work;
mod workspace;

pub use crate::head_dim::{HeadDim, HeadDimError};
pub use crate::operands::Gradients;
pub use builder::AttentionBuilder;
pub use lists::MaskLists;
pub use plan::Plan;
pub use sizes::Shapes;
pub use work::{Attend, Backward, Forward, Inputs, Select, Step, Work};
pub use workspace::Workspace;

use crate::device::Device;
use crate::operands::Upstream;
use crate::tail::{Tail, TailError};
use crate::{BlockMask, BlockSize, DType, Error, MaskMod, ScoreMod, Scores, Selection, Tensor};
use executor::Executor;
use sizes::Sizes;
use std::sync::Arc;
use work::Ranked;

/// What an attention computes, on one device.
///
/// Cloning is cheap: clones share their kernels.
#[derive(Clone)]
pub struct Attention {
    device: Device,
    rule: Arc<Rule>,
    /// Who computes it.
    executor: Arc<dyn Executor>,
}

/// The parts of an attention that do not depend on the device.
#[derive(Debug)]
struct Rule {
    head_dim: HeadDim,
    /// Of v and the output.
    value_dim: HeadDim,
    dtype: DType,
    blocks: BlockSize,
    selection: Option<Selection>,
    scale: f32,
    score_mod: Option<Arc<dyn ScoreMod>>,
    mask_mod: Option<Arc<dyn MaskMod>>,
    tail: Tail,
}

impl Rule {
    /// What the selection kernel takes for k and p: without a rule every admissible block is kept, a mass of 1.
    fn thresholds(&self) -> (f32, f32) {
        self.selection.map_or((0.0, 1.0), |selection| (selection.k_f32(), selection.p_f32()))
    }

    /// Whether blocks are ranked by the means of a few keys each.
    fn by_keys(&self) -> bool {
        self.selection.is_some_and(|selection| selection.scores() == Scores::Keys)
    }

    /// Whether blocks that the mask function keeps as a whole are listed apart.
    fn is_split(&self) -> bool {
        self.mask_mod.is_some()
    }

    /// Whether anything stands for dropped blocks.
    fn has_tail(&self) -> bool {
        self.tail != Tail::None
    }

    fn validate(&self) -> Result<(), Error> {
        if !self.scale.is_finite() {
            return Err(Error::Scale { found: self.scale });
        }
        self.tail.blocks_a_mean(self.blocks)?;
        if let (true, Some(function)) = (self.has_tail(), &self.score_mod) {
            return Err(TailError::ScoreMod { name: function.name().to_owned() }.into());
        }
        Ok(self.selection.map_or(Ok(()), |selection| selection.validate())?)
    }
}

/// What [`Attention::forward`] returns.
#[derive(Debug)]
pub struct Output {
    /// `[batch, heads, seq_q, value_dim]`, the dtype of q; `value_dim` is v's last dimension. Rows with nothing to
    /// attend to are 0.
    pub out: Tensor,
    /// `[batch, heads, seq_q]` f32: the natural logarithm of the sum of exponentials of each row's kept scores; -inf
    /// for a row with nothing to attend to.
    pub lse: Tensor,
    /// The blocks that were kept.
    pub mask: BlockMask,
}

impl Attention {
    /// Starts describing an attention over half-precision tensors (`F16` or `Bf16`).
    pub fn builder(head_dim: HeadDim, dtype: DType) -> AttentionBuilder {
        AttentionBuilder::new(head_dim, dtype)
    }

    /// The rule that selects blocks, where there is one.
    pub fn selection(&self) -> Option<Selection> {
        self.rule.selection
    }

    /// What stands for dropped blocks.
    pub fn tail(&self) -> Tail {
        self.rule.tail
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The sparse block.
    pub fn blocks(&self) -> BlockSize {
        self.rule.blocks
    }

    /// The factor of the products of q and k.
    pub fn scale(&self) -> f32 {
        self.rule.scale
    }

    /// Selects blocks, then attends to them. Nothing is copied to the host.
    ///
    /// q is `[batch, heads, seq_q, head_dim]`, k and v `[batch, kv_heads, seq_kv, head_dim]` (v's last dimension is
    /// another one after [`value_dim`](AttentionBuilder::value_dim)); any strides with unit stride on the last
    /// dimension, so a `[batch, seq, heads, head_dim]` tensor needs only a [`permute`](Tensor::permute). `heads` is a
    /// multiple of `kv_heads`.
    ///
    /// NaN and infinities are values: a NaN in a row of q makes that row of `out` and `lse` NaN and lets its query
    /// block keep its first blocks; a NaN in a row of k ranks its key block last for every query block that may see the
    /// row, and every query that still attends to the block gets NaN; a NaN in v reaches the queries that attend to its
    /// key block.
    ///
    /// # Errors
    /// [`Error::Tensor`] or [`Error::Bind`] for tensors that do not fit; a device error when the GPU fails.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Output, Error> {
        let shape = self.check(q, k, Some(v))?;
        self.planned(shape).output(Inputs { q, k, v })
    }

    /// The block mask that [`forward`](Self::forward) would use.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn mask(&self, q: &Tensor, k: &Tensor) -> Result<BlockMask, Error> {
        let shape = self.check(q, k, None)?;
        self.planned(shape).mask(Ranked::Tensors { q, k })
    }

    /// Attends to the blocks of a mask of one's own: returns `out` and `lse` as in [`Output`].
    ///
    /// The mask function, where there is one, is applied within the blocks of [`BlockMask::kv`] and not within those of
    /// [`BlockMask::full_kv`].
    ///
    /// # Errors
    /// [`Error::Mask`] when the mask is for other sizes or blocks, [`Error::Tail`] when there is a [tail](AttentionBuilder::tail) and the mask does not
    /// say which blocks it drops; otherwise as [`forward`](Self::forward).
    pub fn attend_with(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: &BlockMask,
    ) -> Result<(Tensor, Tensor), Error> {
        let shape = self.check(q, k, Some(v))?;
        self.check_mask(mask, &shape)?;
        self.planned(shape).attend(Inputs { q, k, v }, mask)
    }

    /// The gradients of a loss by q, k and v, from those by `out` (`d_out`, of its shape and dtype) and by `lse`
    /// (`d_lse`, f32 `[batch, heads, seq_q]`; 0 when not given), over the blocks of `output.mask`.
    ///
    /// `output` is what [`forward`](Self::forward) made of the same q, k and v; for a mask of one's own, an [`Output`]
    /// of it and of what [`attend_with`](Self::attend_with) returned. The selection carries no gradient: which blocks
    /// are kept is taken as given. A score function's derivative is made from the function, with its captures constant
    /// ([`ScoreMod::gradient`]). Equal calls give equal bits.
    ///
    /// ```
    /// use tilewright::{Attention, DType, Device, HeadDim, Tensor, top_k};
    /// # let values: Vec<half::bf16> = (0..2 * 300 * 64).map(|i| half::bf16::from_f32((i as f32 * 0.37).sin())).collect();
    /// # let q = Tensor::from_slice(&values, &[1, 2, 300, 64])?;
    /// # let (k, v, d_out) = (q.clone(), q.clone(), q.clone());
    /// let attention = Attention::builder(HeadDim::D64, DType::Bf16).select(top_k(0.2)).build(&Device::cpu())?;
    /// let output = attention.forward(&q, &k, &v)?;
    /// let gradients = attention.backward(&q, &k, &v, &output, &d_out, None)?;
    /// assert_eq!(gradients.dk.shape(), k.shape());
    /// # Ok::<(), tilewright::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Tensor`] for tensors that do not fit, [`Error::Mask`] when the mask is for other sizes or blocks,
    /// [`Error::DeviceFunction`] when a function panics, a device error when the GPU fails.
    pub fn backward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        Output { out, lse, mask }: &Output,
        d_out: &Tensor,
        d_lse: Option<&Tensor>,
    ) -> Result<Gradients, Error> {
        let upstream = Upstream { q, k, v, out, lse, d_out, d_lse };
        let shape = self.check(q, k, Some(v))?;
        self.check_upstream(&upstream, &shape)?;
        self.check_mask(mask, &shape)?;
        self.planned(shape).backward(upstream, mask)
    }

    /// The same attention with its work on a stream of the caller's: see
    /// [`CudaDevice::on_stream`](crate::device::CudaDevice::on_stream).
    ///
    /// # Errors
    /// [`Error::NotOnGpu`] for an attention on the CPU.
    ///
    /// # Safety
    /// As for [`CudaDevice::on_stream`](crate::device::CudaDevice::on_stream).
    pub unsafe fn on_stream(&self, stream: *mut std::ffi::c_void) -> Result<Self, Error> {
        // SAFETY: the caller answers for the stream.
        let (device, executor) = unsafe { self.executor.on_stream(stream)? };
        Ok(Attention { device, executor, rule: self.rule.clone() })
    }

    /// The same kernels with another selection and another scale (`1 / sqrt(head_dim)` when not given), for neither is
    /// part of a kernel: nothing is compiled or tuned anew.
    ///
    /// # Errors
    /// [`Error::Select`] for a share outside (0, 1], [`Error::Scale`] for a scale that is no number, [`Error::Selects`]
    /// unless both attentions select blocks, or neither.
    pub fn with_parameters(&self, selection: Option<Selection>, scale: Option<f32>) -> Result<Self, Error> {
        let rule = &self.rule;
        if selection.is_some() != rule.selection.is_some() {
            return Err(Error::Selects);
        }
        let rule = Arc::new(Rule {
            selection,
            scale: scale.unwrap_or_else(|| rule.head_dim.default_scale()),
            score_mod: rule.score_mod.clone(),
            mask_mod: rule.mask_mod.clone(),
            ..**rule
        });
        rule.validate()?;
        Ok(Attention { rule, ..self.clone() })
    }
}
