//! The small case of a block tail that its backward is checked on.

use super::{GRID, classes, noise, packed};
use crate::device::Device;
use crate::mask::EMPTY;
use crate::{DType, Error, Tensor};

/// Queries and keys of a block, and in all: the last blocks are short.
const BLOCK_Q: usize = 128;
const BLOCK_KV: usize = 64;
const QUERIES: usize = (GRID[2] - 1) * BLOCK_Q + 7;
const KEYS: usize = (GRID[3] - 1) * BLOCK_KV + 5;

/// The query block that drops nothing, and the key block that none drops. Both hold no numbers.
const NOTHING: usize = 3;
const BY_NONE: usize = 5;

/// Query blocks that drop one key block alone, which no other drops: the means of this, and the sums of gradients of
/// that, are no numbers.
const STRANGE_KEY: (usize, usize) = (40, 9);
const STRANGE_SUM: (usize, usize) = (41, 10);

/// How far the gradients may be apart, relative Frobenius: gradients of scores, weights and what they are multiplied
/// with are rounded to 11 bits. No gradient of the case is as small as the second number.
pub(crate) const TAIL_GRADIENT: [f64; 2] = [1e-3, 1e-12];

/// Two query heads that share a key head.
pub(crate) struct TailBackwardCase {
    pub(crate) q_mean: Tensor,
    pub(crate) k_mean: Tensor,
    pub(crate) v_mean: Tensor,
    pub(crate) dropped: Tensor,
    pub(crate) tail_lse: Tensor,
    pub(crate) g: Tensor,
    pub(crate) tail_delta: Tensor,
    /// What the gradients of the means should be.
    pub(crate) dq: Tensor,
    pub(crate) dk: Tensor,
    pub(crate) dv: Tensor,
}

impl TailBackwardCase {
    pub(crate) const SEQS: [i32; 2] = [QUERIES as i32, KEYS as i32];
    pub(crate) const BLOCKS: [i32; 2] = [BLOCK_Q as i32, BLOCK_KV as i32];

    pub(crate) fn new([d, value_d]: [usize; 2], scale: f32) -> Result<Self, Error> {
        let [_, heads, rows, columns] = GRID;
        let values =
            |rows: &[usize], seed| -> Result<Vec<f32>, Error> { noise(DType::F32, rows, seed)?.to_f32_vec() };
        let mut q = values(&[heads * rows, d], 5)?;
        let mut k = values(&[columns, d], 6)?;
        let mut v = values(&[columns, value_d], 7)?;
        let mut g = values(&[heads * rows, value_d], 8)?;
        let delta = values(&[heads * rows], 9)?;
        for (x, row, d) in [(&mut q, NOTHING, d), (&mut g, NOTHING, value_d)] {
            x[row * d..][..d].fill(f32::NAN);
        }
        for block in [BY_NONE, STRANGE_KEY.1] {
            k[block * d..][..d].fill(f32::NAN);
            v[block * value_d..][..value_d].fill(f32::NAN);
        }
        g[STRANGE_SUM.0 * value_d + 3] = f32::INFINITY;
        let mut is_dropped: Vec<bool> = classes(false).into_iter().map(|class| class != EMPTY).collect();
        for (row, dropped) in is_dropped.chunks_mut(columns).enumerate() {
            for (of, block) in [STRANGE_KEY, STRANGE_SUM] {
                if row == of {
                    dropped.fill(false);
                }
                dropped[block] = row == of;
            }
        }

        let of = Means { q: &q, k: &k, v: &v, g: &g, delta: &delta, is_dropped: &is_dropped };
        let (lse, [dq, dk, dv]) = of.expected([d, value_d], scale);
        // Bits past the last block say nothing.
        let words = columns.div_ceil(32);
        let mut bits = packed(is_dropped.iter().copied());
        bits.iter_mut().skip(words - 1).step_by(words).for_each(|word| *word |= -1 << (columns % 32));
        let (of_q, of_kv) = (|d| [1, heads, rows, d], |d| [1, 1, columns, d]);
        Ok(TailBackwardCase {
            q_mean: Tensor::from_slice(&q, &of_q(d))?,
            k_mean: Tensor::from_slice(&k, &of_kv(d))?,
            v_mean: Tensor::from_slice(&v, &of_kv(value_d))?,
            dropped: Tensor::from_slice(&bits, &of_q(words))?,
            tail_lse: Tensor::from_slice(&lse, &[1, heads, rows])?,
            g: Tensor::from_slice(&g, &of_q(value_d))?,
            tail_delta: Tensor::from_slice(&delta, &[1, heads, rows])?,
            dq: Tensor::from_slice(&dq, &of_q(d))?,
            dk: Tensor::from_slice(&dk, &of_kv(d))?,
            dv: Tensor::from_slice(&dv, &of_kv(value_d))?,
        })
    }

    pub(crate) fn drops_nothing(row: usize) -> bool {
        row == NOTHING
    }

    pub(crate) fn dropped_by_none(block: usize) -> bool {
        block == BY_NONE
    }

    pub(crate) fn to(&self, device: &Device) -> Result<Self, Error> {
        Ok(TailBackwardCase {
            q_mean: self.q_mean.to(device)?,
            k_mean: self.k_mean.to(device)?,
            v_mean: self.v_mean.to(device)?,
            dropped: self.dropped.to(device)?,
            tail_lse: self.tail_lse.to(device)?,
            g: self.g.to(device)?,
            tail_delta: self.tail_delta.to(device)?,
            dq: self.dq.clone(),
            dk: self.dk.clone(),
            dv: self.dv.clone(),
        })
    }
}

/// Rows of means of query blocks and of key blocks.
struct Means<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    g: &'a [f32],
    delta: &'a [f32],
    is_dropped: &'a [bool],
}

impl Means<'_> {
    /// The log-sum-exp of every query block, and the gradients of the means.
    fn expected(&self, [d, value_d]: [usize; 2], scale: f32) -> (Vec<f32>, [Vec<f32>; 3]) {
        let (columns, scale) = (GRID[3], f64::from(scale));
        let queries = |row: usize| BLOCK_Q.min(QUERIES - row % GRID[2] * BLOCK_Q) as f64;
        let keys = |block: usize| BLOCK_KV.min(KEYS - block * BLOCK_KV) as f64;
        let [mut dq, mut dk, mut dv] = [self.q, self.k, self.v].map(|x| vec![0.0f64; x.len()]);
        let mut all = Vec::new();
        for (row, is_dropped) in self.is_dropped.chunks(columns).enumerate() {
            let (q, g) = (&self.q[row * d..][..d], &self.g[row * value_d..][..value_d]);
            let dropped: Vec<usize> = (0..columns).filter(|&block| is_dropped[block]).collect();
            let scores: Vec<f64> = dropped
                .iter()
                .map(|&block| scale * dot(q, &self.k[block * d..][..d]) + keys(block).ln())
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - top).exp()).sum();
            let lse = if dropped.is_empty() { f64::NEG_INFINITY } else { top + sum.ln() };
            all.push(lse as f32);
            for (&block, score) in dropped.iter().zip(&scores) {
                let (k, v) = (&self.k[block * d..][..d], &self.v[block * value_d..][..value_d]);
                let weight = (score - lse).exp();
                let dt = weight * (dot(g, v) - f64::from(self.delta[row]));
                add(&mut dq[row * d..][..d], scale / queries(row) * dt, k);
                add(&mut dk[block * d..][..d], scale / keys(block) * dt, q);
                // One element that is no number makes NaN of the whole row.
                let weight = if g.iter().all(|x| x.is_finite()) { weight } else { f64::NAN };
                add(&mut dv[block * value_d..][..value_d], weight / keys(block), g);
            }
        }
        (all, [dq, dk, dv].map(|x| x.into_iter().map(|x| x as f32).collect()))
    }
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}

fn add(to: &mut [f64], factor: f64, row: &[f32]) {
    to.iter_mut().zip(row).for_each(|(to, &x)| *to += factor * f64::from(x));
}
