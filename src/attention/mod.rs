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

mod advice;
mod backward;
mod builder;
mod caller;
mod debug;
mod gpu;
mod head_dim;
mod means;
mod memory;
mod outputs;
mod sizes;
mod workspace;

pub use backward::Gradients;
pub use builder::AttentionBuilder;
pub use caller::MaskLists;
pub use head_dim::{HeadDim, HeadDimError};
pub use workspace::Workspace;

use crate::device::Device;
use crate::launch::{Choice, Kernel, Tuned};
use crate::mask::MOST_POSITIONS;
use crate::operands::Shape;
use crate::tensor::TensorError;
use crate::{BlockMask, BlockSize, DType, Error, MaskError, MaskMod, ScoreMod, Selection, Tensor, cpu};
use gpu::{Pipeline, Ranked};
use memory::{Fill, Memory};
use sizes::Sizes;
use std::sync::Arc;

/// What an attention computes, on one device.
pub struct Attention {
    device: Device,
    rule: Arc<Rule>,
    /// The kernels; absent on the CPU.
    pipeline: Option<Pipeline>,
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
}

impl Rule {
    /// What the selection kernel takes for k and p: without a rule every admissible block is kept, a mass of 1.
    fn thresholds(&self) -> (f32, f32) {
        self.selection.map_or((0.0, 1.0), |selection| (selection.k_f32(), selection.p_f32()))
    }

    fn validate(&self) -> Result<(), Error> {
        if !self.scale.is_finite() {
            return Err(Error::Scale { found: self.scale });
        }
        Ok(self.selection.map_or(Ok(()), |selection| selection.validate())?)
    }
}

/// What [`Attention::forward`] returns.
#[derive(Debug)]
pub struct Output {
    /// `[batch, heads, seq_q, value_dim]`, the dtype of q; `value_dim` is v's last dimension. Rows with nothing to attend to are 0.
    pub out: Tensor,
    /// `[batch, heads, seq_q]` f32: the natural logarithm of the sum of exponentials of each row's kept scores; -inf for
    /// a row with nothing to attend to.
    pub lse: Tensor,
    /// The blocks that were kept.
    pub mask: BlockMask,
}

impl Attention {
    /// Starts describing an attention over half-precision tensors (`F16` or `Bf16`).
    pub fn builder(head_dim: HeadDim, dtype: DType) -> AttentionBuilder {
        AttentionBuilder::new(head_dim, dtype)
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

    /// The kernels in use, in the order they run: those of the last call; none before the first, and none on the CPU.
    pub fn kernels(&self) -> Vec<Kernel> {
        self.pipeline.iter().flat_map(Pipeline::stages).filter_map(Tuned::current).collect()
    }

    /// What was chosen for each kernel of the last call, and why.
    pub fn choices(&self) -> Vec<Choice> {
        self.pipeline.iter().flat_map(Pipeline::stages).filter_map(Tuned::choice).collect()
    }

    /// Selects blocks, then attends to them. Nothing is copied to the host.
    ///
    /// q is `[batch, heads, seq_q, head_dim]`, k and v `[batch, kv_heads, seq_kv, head_dim]` (v's last dimension is another one
    /// after [`value_dim`](AttentionBuilder::value_dim)); any strides with unit stride on the last dimension, so a `[batch, seq, heads, head_dim]` tensor needs only a
    /// [`permute`](Tensor::permute). `heads` is a multiple of `kv_heads`.
    ///
    /// NaN and infinities are values: a NaN in a row of q makes that row of `out` and `lse` NaN and lets its query block
    /// keep its first blocks; a NaN in a row of k ranks its key block last for every query block that may see the row, and
    /// every query that still attends to the block gets NaN; a NaN in v reaches the queries that attend to its key block.
    ///
    /// # Errors
    /// [`Error::Tensor`] or [`Error::Bind`] for tensors that do not fit; a device error when the GPU fails.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Output, Error> {
        self.check(q, k, Some(v))?;
        let mask = self.mask_unchecked(q, k)?;
        let (out, lse) = self.attend_unchecked(q, k, v, &mask)?;
        Ok(Output { out, lse, mask })
    }

    /// The block mask that [`forward`](Self::forward) would use.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn mask(&self, q: &Tensor, k: &Tensor) -> Result<BlockMask, Error> {
        self.check(q, k, None)?;
        self.mask_unchecked(q, k)
    }

    /// Attends to the blocks of a mask of one's own: returns `out` and `lse` as in [`Output`].
    ///
    /// The mask function, where there is one, is applied within the blocks of [`BlockMask::kv`] and not within those of
    /// [`BlockMask::full_kv`].
    ///
    /// # Errors
    /// [`Error::Mask`] when the mask is for other sizes or blocks; otherwise as [`forward`](Self::forward).
    pub fn attend_with(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: &BlockMask,
    ) -> Result<(Tensor, Tensor), Error> {
        let shape = self.check(q, k, Some(v))?;
        mask.check_fits(shape.batch, shape.heads, shape.seq_q, shape.seq_kv)?;
        mask.check_blocks(self.rule.blocks)?;
        self.attend_unchecked(q, k, v, mask)
    }

    /// The same attention with its work on a stream of the caller's: see [`CudaDevice::on_stream`](crate::device::CudaDevice::on_stream).
    ///
    /// # Errors
    /// [`Error::NotOnGpu`] for an attention on the CPU.
    ///
    /// # Safety
    /// As for [`CudaDevice::on_stream`](crate::device::CudaDevice::on_stream).
    pub unsafe fn on_stream(&self, stream: *mut std::ffi::c_void) -> Result<Self, Error> {
        let (Device::Cuda(cuda), Some(pipeline)) = (&self.device, &self.pipeline) else {
            return Err(Error::NotOnGpu { what: "a stream" });
        };
        // SAFETY: the caller answers for the stream.
        let cuda = unsafe { cuda.on_stream(stream) };
        let pipeline = Some(pipeline.on(&cuda));
        Ok(Attention { device: Device::Cuda(cuda), rule: self.rule.clone(), pipeline })
    }

    /// The same kernels with another selection and another scale (`1 / sqrt(head_dim)` when not given), for neither is part of a
    /// kernel: nothing is compiled or tuned anew.
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
        Ok(Attention { device: self.device.clone(), rule, pipeline: self.pipeline.clone() })
    }

    fn mask_unchecked(&self, q: &Tensor, k: &Tensor) -> Result<BlockMask, Error> {
        let rule = &self.rule;
        if self.pipeline.is_some() && is_empty(q, k) {
            let (q, k) = (q.to(&Device::Cpu)?, k.to(&Device::Cpu)?);
            let mask_mod = rule.mask_mod.as_deref();
            return cpu::mask(&q, &k, rule.selection.as_ref(), rule.scale, rule.blocks, mask_mod)?
                .to(&self.device);
        }
        let Some(pipeline) = &self.pipeline else {
            return cpu::mask(
                q,
                k,
                rule.selection.as_ref(),
                rule.scale,
                rule.blocks,
                rule.mask_mod.as_deref(),
            );
        };
        self.selected(pipeline, &Sizes::of(rule, q, k), Ranked::Tensors(q, k))
    }

    /// The mask that the pipeline makes of what is ranked.
    fn selected(&self, pipeline: &Pipeline, sizes: &Sizes, ranked: Ranked<'_>) -> Result<BlockMask, Error> {
        let mut memory = Memory::Device { device: &self.device, fill: Fill::Anything };
        let of_tensors = matches!(ranked, Ranked::Tensors(..));
        let mut scratch = pipeline.scratch(sizes, of_tensors, &mut memory)?;
        let mut lists = pipeline.lists(sizes, true, &mut memory)?;
        pipeline.select(&self.rule, sizes, ranked, &mut scratch, &mut lists)?;
        let order = scratch.row_order().cloned();
        Ok(lists.into_mask(self.rule.blocks, (sizes.seq_q, sizes.seq_kv)).with_row_order(order))
    }

    fn attend_unchecked(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: &BlockMask,
    ) -> Result<(Tensor, Tensor), Error> {
        let rule = &self.rule;
        if self.pipeline.is_some() && is_empty(q, k) {
            let to = |tensor: &Tensor| tensor.to(&Device::Cpu);
            let (q, k, v, mask) = (to(q)?, to(k)?, to(v)?, mask.to(&Device::Cpu)?);
            let (score_mod, mask_mod) = (rule.score_mod.as_deref(), rule.mask_mod.as_deref());
            let (out, lse) = cpu::attend(&q, &k, &v, &mask, rule.scale, score_mod, mask_mod)?;
            return Ok((out.to(&self.device)?, lse.to(&self.device)?));
        }
        let Some(pipeline) = &self.pipeline else {
            return cpu::attend(
                q,
                k,
                v,
                mask,
                rule.scale,
                rule.score_mod.as_deref(),
                rule.mask_mod.as_deref(),
            );
        };
        let rows = &q.shape()[..3];
        let mut out = Tensor::uninit(&self.device, rule.dtype, &[rows, &v.shape()[3..]].concat())?;
        let mut lse = Tensor::uninit(&self.device, DType::F32, rows)?;
        let (density, lists) = (mask.known_density(), (mask.kv(), mask.full_kv()));
        let mut made = None;
        if mask.lacks_row_order() {
            let mut memory = Memory::Device { device: &self.device, fill: Fill::Anything };
            made = pipeline.ordered(rule, &Sizes::of(rule, q, k), lists, &mut memory)?;
        }
        let lists = (lists.0, lists.1, mask.row_order().or(made.as_ref()));
        pipeline.attend(rule, [q, k, v], lists, density, [&mut out, &mut lse])?;
        Ok((out, lse))
    }

    fn check(&self, q: &Tensor, k: &Tensor, v: Option<&Tensor>) -> Result<Shape, Error> {
        let rule = &self.rule;
        if q.dtype() != rule.dtype {
            let needed = format!("{}, which this attention was built for", rule.dtype);
            return Err(TensorError::DType { what: "q".into(), found: q.dtype(), needed }.into());
        }
        let shape = Shape::of(q, k, v)?;
        self.check_sizes(shape.d, [shape.seq_q, shape.seq_kv])?;
        let (found, needed) = (shape.value_d, rule.value_dim.get());
        if v.is_some() && found != needed {
            return Err(HeadDimError::ValuesDiffer { found, needed }.into());
        }
        for (what, tensor) in [("q", Some(q)), ("k", Some(k)), ("v", v)] {
            let Some(tensor) = tensor else { continue };
            tensor.expect_place(what, &self.device)?;
        }
        Ok(shape)
    }

    fn check_sizes(&self, d: usize, seqs: [usize; 2]) -> Result<(), Error> {
        if let Some(found) = seqs.into_iter().find(|&seq| seq > MOST_POSITIONS) {
            return Err(MaskError::TooLong { found }.into());
        }
        let needed = self.rule.head_dim.get();
        if d == needed { Ok(()) } else { Err(HeadDimError::Differs { found: d, needed }.into()) }
    }
}

/// Whether there is nothing to attend to, or nobody: no kernel is launched over no rows.
fn is_empty(q: &Tensor, k: &Tensor) -> bool {
    q.elements() == 0 || k.elements() == 0
}
