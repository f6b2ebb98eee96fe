//! The gradients of an attention.

use super::caller::{arena, check_dense};
use super::gpu::Upstream;
use super::memory::{Fill, Memory};
use super::{Attention, MaskLists, Output, Sizes, is_empty};
use crate::tensor::{Arena, expect_apart};
use crate::{Error, MaskError, Tensor, cpu};

/// What [`Attention::backward`] returns: gradients in the dtype of q, summed in f32, contiguous.
#[derive(Debug)]
pub struct Gradients {
    /// `[batch, heads, seq_q, head_dim]`. Rows with nothing to attend to have 0.
    pub dq: Tensor,
    /// `[batch, kv_heads, seq_kv, head_dim]`, summed over the heads that share a key head. Keys nobody attends to have 0.
    pub dk: Tensor,
    /// `[batch, kv_heads, seq_kv, value_dim]`, otherwise as `dk`.
    pub dv: Tensor,
}

impl Attention {
    /// The gradients of a loss by q, k and v, from those by `out` (`d_out`, of its shape and dtype) and by `lse`
    /// (`d_lse`, f32 `[batch, heads, seq_q]`; 0 when not given), over the blocks of `output.mask`.
    ///
    /// `output` is what [`forward`](Self::forward) made of the same q, k and v; for a mask of one's own, an [`Output`] of it
    /// and of what [`attend_with`](Self::attend_with) returned. The selection carries no gradient: which blocks are kept
    /// is taken as given. A score function's derivative is made from the function, with its captures constant
    /// ([`ScoreMod::gradient`](crate::ScoreMod::gradient)). Equal calls give equal bits.
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
        output: &Output,
        d_out: &Tensor,
        d_lse: Option<&Tensor>,
    ) -> Result<Gradients, Error> {
        let Output { out, lse, mask } = output;
        let shape = self.check(q, k, Some(v))?;
        shape.check_backward(q, [out, lse], d_out, d_lse)?;
        self.expect_places([out, lse], d_out, d_lse)?;
        mask.check_fits(shape.batch, shape.heads, shape.seq_q, shape.seq_kv)?;
        mask.check_blocks(self.rule.blocks)?;
        let Some(pipeline) = &self.pipeline else {
            return self.backward_on_cpu([q, k, v], output, (d_out, d_lse));
        };
        if is_empty(q, k) {
            let zeros = |like: &Tensor| Tensor::zeros_on(&self.device, like.dtype(), like.shape());
            return Ok(Gradients { dq: zeros(q)?, dk: zeros(k)?, dv: zeros(v)? });
        }
        let mut memory = Memory::Device { device: &self.device, fill: Fill::Anything };
        let lists = MaskLists {
            kv: mask.kv().clone(),
            full_kv: mask.full_kv().cloned(),
            q: Some(mask.q().clone()),
            full_q: mask.full_q().cloned(),
        };
        let mut scratch = pipeline.backward_scratch(&Sizes::of(&self.rule, q, k), &lists, &mut memory)?;
        let mut made = |like: &Tensor| memory.tensor(like.dtype(), like.shape());
        let mut gradients = Gradients { dq: made(q)?, dk: made(k)?, dv: made(v)? };
        let upstream = Upstream { qkv: [q, k, v], out, lse, d_out, d_lse };
        let density = mask.known_density();
        pipeline.backward(&self.rule, upstream, &lists, density, &mut scratch, &mut gradients)?;
        Ok(gradients)
    }

    fn backward_on_cpu(
        &self,
        [q, k, v]: [&Tensor; 3],
        Output { out, lse, mask }: &Output,
        upstream: (&Tensor, Option<&Tensor>),
    ) -> Result<Gradients, Error> {
        let rule = &self.rule;
        let (score_mod, mask_mod) = (rule.score_mod.as_deref(), rule.mask_mod.as_deref());
        cpu::backward([q, k, v], [out, lse], upstream, mask, rule.scale, score_mod, mask_mod)
    }

    /// Bytes of scratch for [`backward_in`](Self::backward_in) on tensors of these shapes and over these lists; 0 on the CPU.
    ///
    /// # Errors
    /// As [`mask`](Self::mask).
    pub fn backward_scratch_bytes(&self, q: &Tensor, k: &Tensor, lists: &MaskLists) -> Result<usize, Error> {
        self.check(q, k, None)?;
        let Some(pipeline) = self.pipeline.as_ref().filter(|_| !is_empty(q, k)) else { return Ok(0) };
        check_lists(lists)?;
        let mut arena = Arena::to_measure();
        pipeline.backward_scratch(&Sizes::of(&self.rule, q, k), lists, &mut Memory::Arena(&mut arena))?;
        Ok(arena.needed())
    }

    /// As [`backward`](Self::backward) in the caller's own memory: over the lists that the forward went by, into `gradients` of
    /// the shapes of q, k and v, which are dense in any order of their dimensions. Lists by key that are not given are made in
    /// the scratch, a contiguous tensor of at least [`backward_scratch_bytes`](Self::backward_scratch_bytes).
    ///
    /// The lists may hold anything, as for [`attend_in`](Self::attend_in); of a block named twice in a row the gradients are
    /// not specified. Nothing is read on the host, so that nothing waits.
    ///
    /// # Errors
    /// [`Error::NotOnGpu`] for an attention on the CPU, [`Error::Scratch`], [`Error::Gaps`], [`Error::Aliased`]; [`Error::Tensor`]
    /// for gradients of another shape, dtype or device, over nothing too; lists as for [`attend_in`](Self::attend_in), those by key
    /// where they are read; otherwise as [`backward`](Self::backward).
    pub fn backward_in(
        &self,
        qkv: [&Tensor; 3],
        [out, lse]: [&Tensor; 2],
        (d_out, d_lse): (&Tensor, Option<&Tensor>),
        lists: &MaskLists,
        gradients: &mut Gradients,
        scratch: &mut Tensor,
    ) -> Result<(), Error> {
        let [q, k, v] = qkv;
        let shape = self.check(q, k, Some(v))?;
        shape.check_backward(q, [out, lse], d_out, d_lse)?;
        let (cuda, pipeline) = self.gpu()?;
        self.expect_places([out, lse], d_out, d_lse)?;
        self.expect_gradients(qkv, gradients)?;
        let _current = cuda.enter()?;
        check_lists(lists)?;
        let inputs = [("q", q), ("k", k), ("v", v), ("out", out), ("lse", lse), ("d_out", d_out)];
        for (name, gradient) in gradients.named() {
            check_dense(name, gradient)?;
        }
        let read = inputs.into_iter().chain(d_lse.map(|d_lse| ("d_lse", d_lse))).chain(lists.named());
        expect_apart(gradients.named().into_iter().chain([("scratch", &*scratch)]), read)?;
        if is_empty(q, k) {
            self.expect_read_lists(&Sizes::of(&self.rule, q, k), &lists.kv, lists.full_kv.as_ref())?;
            let Gradients { dq, dk, dv } = gradients;
            return [dq, dk, dv].into_iter().try_for_each(|gradient| gradient.fill_words(cuda, 0));
        }
        let mut arena = arena(scratch)?;
        let sizes = Sizes::of(&self.rule, q, k);
        let mut work = pipeline.backward_scratch(&sizes, lists, &mut Memory::Arena(&mut arena))?;
        let upstream = Upstream { qkv, out, lse, d_out, d_lse };
        pipeline.backward(&self.rule, upstream, lists, None, &mut work, gradients)
    }

    /// As [`is_warm`](Self::is_warm), for [`backward_in`](Self::backward_in).
    pub fn is_warm_for_backward(&self, q: &Tensor, k: &Tensor) -> bool {
        self.is_warm_by(q, k, |pipeline, sizes| pipeline.is_warm_for_backward(&self.rule, sizes))
    }
}

impl Gradients {
    pub(super) fn named(&self) -> [(&'static str, &Tensor); 3] {
        [("dq", &self.dq), ("dk", &self.dk), ("dv", &self.dv)]
    }
}

/// What scratch is made by, before the kernels' bindings look at the rest.
fn check_lists(lists: &MaskLists) -> Result<(), Error> {
    for (what, index) in [("kv_indices", Some(&lists.kv)), ("full_kv_indices", lists.full_kv.as_ref())] {
        let Some(shape) = index.map(|index| index.indices.shape()).filter(|shape| shape.len() != 4) else {
            continue;
        };
        let needed = "four dimensions: batch, heads, rows and width".to_owned();
        return Err(MaskError::ListShape { what, found: shape.to_vec(), needed }.into());
    }
    Ok(())
}
