//! The gradients of an attention.

use super::{Attention, Output};
use crate::{Error, Tensor, cpu};

/// What [`Attention::backward`] returns: gradients in the dtype of q, summed in f32, contiguous.
#[derive(Debug)]
pub struct Gradients {
    /// `[batch, heads, seq_q, head_dim]`. Rows with nothing to attend to have 0.
    pub dq: Tensor,
    /// `[batch, kv_heads, seq_kv, head_dim]`, summed over the heads that share a key head. Keys nobody attends to have 0.
    pub dk: Tensor,
    /// As `dk`.
    pub dv: Tensor,
}

impl Attention {
    /// The gradients of a loss by q, k and v, from those by `out` (`d_out`, of the shape and dtype of q) and by `lse`
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
    /// [`Error::DeviceFunction`] when a function panics; [`Error::CpuOnly`] on a GPU.
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
        for (what, tensor) in
            [("out", Some(out)), ("lse", Some(lse)), ("d_out", Some(d_out)), ("d_lse", d_lse)]
        {
            tensor.map_or(Ok(()), |tensor| tensor.expect_place(what, &self.device))?;
        }
        mask.check_fits(shape.batch, shape.heads, shape.seq_q, shape.seq_kv)?;
        let rule = &self.rule;
        mask.check_blocks(rule.blocks)?;
        if self.pipeline.is_some() {
            return Err(Error::CpuOnly { what: "the backward" });
        }
        let (score_mod, mask_mod) = (rule.score_mod.as_deref(), rule.mask_mod.as_deref());
        cpu::backward([q, k, v], [out, lse], (d_out, d_lse), mask, rule.scale, score_mod, mask_mod)
    }
}
