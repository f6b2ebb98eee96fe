//! The small case of an attention that its forward and its backward are checked on.

use super::{TOKENS, noise};
use crate::device::Device;
use crate::launch::Probe;
use crate::mask::{EMPTY, FULL, PARTIAL};
use crate::{BlockMask, BlockSize, DType, Error, Gradients, MaskMod, ScoreMod, Tensor, cpu};

/// The attention that a kernel is part of, as the arguments, the parameters and the functions of a call say.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) dtype: DType,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
    pub(crate) blocks: BlockSize,
    pub(crate) scale: f32,
    pub(crate) score_mod: Option<&'a dyn ScoreMod>,
    pub(crate) mask_mod: Option<&'a dyn MaskMod>,
    /// Query heads, queries and keys of the call.
    pub(crate) call: [usize; 3],
}

impl<'a> Subject<'a> {
    /// Of a call with q, k and v.
    pub(crate) fn of(probe: &Probe<'a>, [q, k, v]: [&Tensor; 3], scale: f32) -> Result<Self, Error> {
        let extent = |tensor: &Tensor, axis: usize| tensor.shape().get(axis).copied().unwrap_or(0);
        Ok(Subject {
            dtype: q.dtype(),
            head_dim: extent(q, 3),
            value_dim: extent(v, 3),
            blocks: BlockSize::new(probe.int("BLOCK_Q")?, probe.int("BLOCK_KV")?)?,
            scale,
            score_mod: probe.score_mod(),
            mask_mod: probe.mask_mod(),
            call: [extent(q, 1), extent(q, 2), extent(k, 2)],
        })
    }

    /// Query heads, queries and keys of the case. A user's functions are asked about no other heads and positions than those of the
    /// call, for which alone their captures may be made: a short call has a short case.
    pub(crate) fn extents(&self) -> [usize; 3] {
        let whole = [2, TOKENS, TOKENS];
        if self.score_mod.is_none() && self.mask_mod.is_none() {
            return whole;
        }
        [0, 1, 2].map(|i: usize| whole[i].min(self.call[i]))
    }
}

/// Two query heads that share a key head; one mask for both.
pub(crate) struct Case {
    pub(crate) qkv: [Tensor; 3],
    pub(crate) out: Tensor,
    pub(crate) lse: Tensor,
    pub(crate) d_out: Tensor,
    pub(crate) d_lse: Tensor,
    pub(crate) mask: BlockMask,
}

impl Case {
    pub(crate) fn new(subject: &Subject<'_>) -> Result<Self, Error> {
        let [heads, seq_q, seq_kv] = subject.extents();
        let tensor = |heads, seq, dim, seed| noise(subject.dtype, &[1, heads, seq, dim], seed);
        let qkv = [
            tensor(heads, seq_q, subject.head_dim, 1)?,
            tensor(1, seq_kv, subject.head_dim, 2)?,
            tensor(1, seq_kv, subject.value_dim, 3)?,
        ];
        let mask = mask(subject, (seq_q, seq_kv))?;
        let (score_mod, mask_mod) = (subject.score_mod, subject.mask_mod);
        let (out, lse) = cpu::attend(&qkv[0], &qkv[1], &qkv[2], &mask, subject.scale, score_mod, mask_mod)?;
        let d_out = tensor(heads, seq_q, subject.value_dim, 4)?;
        let d_lse = noise(DType::F32, lse.shape(), 5)?;
        Ok(Case { qkv, out, lse, d_out, d_lse, mask })
    }

    /// `with_d_lse`: whether the loss depends on `lse` too.
    pub(crate) fn gradients(&self, subject: &Subject<'_>, with_d_lse: bool) -> Result<Gradients, Error> {
        let Case { qkv: [q, k, v], out, lse, d_out, d_lse, mask } = self;
        let (score_mod, mask_mod) = (subject.score_mod, subject.mask_mod);
        let upstream = cpu::Upstream { q, k, v, out, lse, d_out, d_lse: with_d_lse.then_some(d_lse) };
        cpu::backward(upstream, mask, subject.scale, score_mod, mask_mod)
    }

    pub(crate) fn delta(&self, with_d_lse: bool) -> Result<Tensor, Error> {
        let d = self.out.shape()[3];
        let (out, d_out) = (self.out.to_f32_vec()?, self.d_out.to_f32_vec()?);
        let (lse, d_lse) = (self.lse.to_f32_vec()?, self.d_lse.to_f32_vec()?);
        let row = |(i, (a, b)): (usize, (&[f32], &[f32]))| match lse[i] {
            f32::NEG_INFINITY => 0.0,
            _ => a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>() - if with_d_lse { d_lse[i] } else { 0.0 },
        };
        let delta: Vec<f32> = out.chunks(d).zip(d_out.chunks(d)).enumerate().map(row).collect();
        Tensor::from_slice(&delta, self.lse.shape())
    }

    /// For each query, whether it attends to nothing.
    pub(crate) fn without_keys(&self) -> Result<Vec<bool>, Error> {
        Ok(self.lse.to_vec::<f32>()?.into_iter().map(|lse| lse == f32::NEG_INFINITY).collect())
    }

    /// For each key block, whether no query block lists it.
    pub(crate) fn without_queries(&self) -> Result<Vec<bool>, Error> {
        let classes = self.mask.to_dense()?;
        let blocks = classes.shape[3];
        Ok((0..blocks).map(|j| classes.classes.iter().skip(j).step_by(blocks).all(|&c| c == EMPTY)).collect())
    }

    pub(crate) fn to(&self, device: &Device) -> Result<Self, Error> {
        let [q, k, v] = &self.qkv;
        Ok(Case {
            qkv: [q.to(device)?, k.to(device)?, v.to(device)?],
            out: self.out.to(device)?,
            lse: self.lse.to(device)?,
            d_out: self.d_out.to(device)?,
            d_lse: self.d_lse.to(device)?,
            mask: self.mask.to(device)?,
        })
    }
}

/// About half of the blocks, none of one row and of one column of them; of those kept some are full where there is a mask function,
/// as its classes may say.
fn mask(subject: &Subject<'_>, (seq_q, seq_kv): (usize, usize)) -> Result<BlockMask, Error> {
    let shape = [1, 1, seq_q.div_ceil(subject.blocks.q()), seq_kv.div_ceil(subject.blocks.kv())];
    let split = subject.mask_mod.is_some();
    let class = |block: usize| match block % 3 {
        _ if block / shape[3] == 1 || block % shape[3] == 3 => EMPTY,
        1 if split => FULL,
        2 => EMPTY,
        _ => PARTIAL,
    };
    let classes: Vec<u8> = (0..shape.iter().product()).map(class).collect();
    BlockMask::from_checked(&classes, shape, subject.blocks, (seq_q, seq_kv), split)
}

/// An order that nobody would make: the last first.
pub(crate) fn backwards(blocks: usize) -> Result<Tensor, Error> {
    let order: Vec<i32> = (0..blocks as i32).rev().collect();
    Tensor::from_slice(&order, &[1, 1, blocks])
}
