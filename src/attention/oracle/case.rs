//! The small case of an attention that its forward and its backward are checked on.

use super::{Rule, Sizes, TOKENS, noise};
use crate::attention::{Gradients, HeadDim};
use crate::device::Device;
use crate::mask::{EMPTY, FULL, PARTIAL};
use crate::{BlockMask, DType, Error, Tensor, cpu};

/// Two query heads that share a key head; one mask for both.
///
/// A user's functions are asked about no other heads and positions than those of the call, for which alone their captures may be
/// made: a short call has a short case.
pub(super) struct Case {
    pub(super) qkv: [Tensor; 3],
    pub(super) out: Tensor,
    pub(super) lse: Tensor,
    pub(super) d_out: Tensor,
    pub(super) d_lse: Tensor,
    pub(super) mask: BlockMask,
}

impl Case {
    pub(super) fn new(rule: &Rule, sizes: &Sizes) -> Result<Self, Error> {
        let [heads, seq_q, seq_kv] = extents(rule, sizes);
        let tensor = |heads, seq, dim: HeadDim, seed| noise(rule.dtype, &[1, heads, seq, dim.get()], seed);
        let qkv = [
            tensor(heads, seq_q, rule.head_dim, 1)?,
            tensor(1, seq_kv, rule.head_dim, 2)?,
            tensor(1, seq_kv, rule.value_dim, 3)?,
        ];
        let mask = mask(rule, (seq_q, seq_kv))?;
        let (score_mod, mask_mod) = (rule.score_mod.as_deref(), rule.mask_mod.as_deref());
        let (out, lse) = cpu::attend(&qkv[0], &qkv[1], &qkv[2], &mask, rule.scale, score_mod, mask_mod)?;
        let d_out = tensor(heads, seq_q, rule.value_dim, 4)?;
        let d_lse = noise(DType::F32, lse.shape(), 5)?;
        Ok(Case { qkv, out, lse, d_out, d_lse, mask })
    }

    /// `with_d_lse`: whether the loss depends on `lse` too.
    pub(super) fn gradients(&self, rule: &Rule, with_d_lse: bool) -> Result<Gradients, Error> {
        let Case { qkv: [q, k, v], out, lse, d_out, d_lse, mask } = self;
        let (score_mod, mask_mod) = (rule.score_mod.as_deref(), rule.mask_mod.as_deref());
        let upstream = cpu::Upstream { q, k, v, out, lse, d_out, d_lse: with_d_lse.then_some(d_lse) };
        cpu::backward(upstream, mask, rule.scale, score_mod, mask_mod)
    }

    pub(super) fn delta(&self, with_d_lse: bool) -> Result<Tensor, Error> {
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
    pub(super) fn without_keys(&self) -> Result<Vec<bool>, Error> {
        Ok(self.lse.to_vec::<f32>()?.into_iter().map(|lse| lse == f32::NEG_INFINITY).collect())
    }

    /// For each key block, whether no query block lists it.
    pub(super) fn without_queries(&self) -> Result<Vec<bool>, Error> {
        let classes = self.mask.to_dense()?;
        let blocks = classes.shape[3];
        Ok((0..blocks).map(|j| classes.classes.iter().skip(j).step_by(blocks).all(|&c| c == EMPTY)).collect())
    }

    pub(super) fn to(&self, device: &Device) -> Result<Self, Error> {
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

/// Query heads, queries and keys of the case.
pub(super) fn extents(rule: &Rule, sizes: &Sizes) -> [usize; 3] {
    let whole = [2, TOKENS, TOKENS];
    if rule.score_mod.is_none() && rule.mask_mod.is_none() {
        return whole;
    }
    let call = [sizes.heads, sizes.seq_q, sizes.seq_kv];
    [0, 1, 2].map(|i: usize| whole[i].min(call[i]))
}

/// About half of the blocks, none of one row and of one column of them; of those kept some are full where there is a mask function,
/// as its classes may say.
fn mask(rule: &Rule, (seq_q, seq_kv): (usize, usize)) -> Result<BlockMask, Error> {
    let shape = [1, 1, seq_q.div_ceil(rule.blocks.q()), seq_kv.div_ceil(rule.blocks.kv())];
    let split = rule.mask_mod.is_some();
    let class = |block: usize| match block % 3 {
        _ if block / shape[3] == 1 || block % shape[3] == 3 => EMPTY,
        1 if split => FULL,
        2 => EMPTY,
        _ => PARTIAL,
    };
    let classes: Vec<u8> = (0..shape.iter().product()).map(class).collect();
    BlockMask::from_checked(&classes, shape, rule.blocks, (seq_q, seq_kv), split)
}

/// An order that nobody would make: the last first.
pub(super) fn backwards(blocks: usize) -> Result<Tensor, Error> {
    let order: Vec<i32> = (0..blocks as i32).rev().collect();
    Tensor::from_slice(&order, &[1, 1, blocks])
}
