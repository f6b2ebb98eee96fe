//! What the forward attends to beside the kept blocks, and what comes of it.

use super::{Case, Subject, noise};
use crate::device::Device;
use crate::launch::Probe;
use crate::{DType, Error, Tensor};

/// Pieces of means. The first query block takes no part in the last.
const PIECES: usize = 4;

/// A tail that nothing was pooled for, of a kind that the forward was made for.
pub(crate) struct TailCase {
    pub(crate) out: Option<Tensor>,
    pub(crate) lse: Option<Tensor>,
    pub(crate) k: Option<Tensor>,
    pub(crate) v: Option<Tensor>,
    pub(crate) weights: Option<Tensor>,
    pub(crate) pieces: Option<Tensor>,
    /// `out` and `lse` of the whole softmax.
    pub(crate) expected: [Vec<f32>; 2],
}

impl TailCase {
    /// `block` and `row`: what the kernel's TAIL is for each; `piece`: means that it takes together.
    pub(crate) fn new(
        probe: &Probe<'_>,
        subject: &Subject<'_>,
        case: &Case,
        [block, row, piece]: [i64; 3],
    ) -> Result<Self, Error> {
        let (kind, piece) = (probe.int("TAIL")? as i64, piece as usize);
        let rows = case.mask.shape()[2];
        let mut tail = TailCase {
            out: None,
            lse: None,
            k: None,
            v: None,
            weights: None,
            pieces: None,
            expected: [case.out.to_f32_vec()?, case.lse.to_f32_vec()?],
        };
        let [heads, ..] = subject.extents();
        if kind == block {
            tail.out = Some(noise(DType::F32, &[1, heads, rows, subject.value_dim], 6)?);
            // The second query block drops nothing.
            let lse = noise(DType::F32, &[1, heads, rows], 7)?.to_f32_vec()?;
            let lse =
                lse.iter().enumerate().map(|(i, x)| if i % rows == 1 { f32::NEG_INFINITY } else { 4.0 + x });
            tail.lse = Some(Tensor::from_slice(&lse.collect::<Vec<_>>(), &[1, heads, rows])?);
        } else if kind == row {
            let means = PIECES * piece;
            tail.k = Some(noise(subject.dtype, &[1, 1, means, subject.head_dim], 6)?);
            tail.v = Some(noise(subject.dtype, &[1, 1, means, subject.value_dim], 7)?);
            let weight = |i: usize| {
                let (row, mean) = (i / means, i % means);
                let absent = mean % 3 == 0 || row == 0 && mean >= means - piece || row == 1;
                if absent { f32::NEG_INFINITY } else { (1.0 + (mean % 64) as f32).ln() }
            };
            let weights: Vec<f32> = (0..rows * means).map(weight).collect();
            tail.weights = Some(Tensor::from_slice(&weights, &[1, 1, rows, means])?);
            let pieces = |row: usize| match row {
                0 => (1 << (PIECES - 1)) - 1,
                1 => 0,
                // Bits of pieces that there are not.
                _ => -1,
            };
            let pieces: Vec<i32> = (0..rows).map(pieces).collect();
            tail.pieces = Some(Tensor::from_slice(&pieces, &[1, 1, rows, 1])?);
        }
        tail.add(subject, case)?;
        Ok(tail)
    }

    /// The case with `out` and `lse` of the whole softmax, those that a backward starts from.
    pub(crate) fn whole(&self, case: Case) -> Result<Case, Error> {
        let [out, lse] = &self.expected;
        Ok(Case {
            out: rounded(case.out.dtype(), out, case.out.shape())?,
            lse: Tensor::from_slice(lse, case.lse.shape())?,
            ..case
        })
    }

    /// What the means give to the gradients of a whole case with these deltas: to that of q, and to their own from each of `parts` of the query blocks, one
    /// part after another.
    pub(crate) fn gradients(
        &self,
        subject: &Subject<'_>,
        whole: &Case,
        delta: &[f32],
        parts: usize,
    ) -> Result<[Vec<f32>; 3], Error> {
        let [heads, seq_q, _] = subject.extents();
        let (d, value_d, q_blocks) = (subject.head_dim, subject.value_dim, whole.mask.shape()[2]);
        let mut dq = vec![0.0; heads * seq_q * d];
        let (Some(keys), Some(values), Some(weights)) = (&self.k, &self.v, &self.weights) else {
            return Ok([dq, Vec::new(), Vec::new()]);
        };
        let [keys, values, weights] = [keys.to_f32_vec()?, values.to_f32_vec()?, weights.to_f32_vec()?];
        let (q, d_out, lse) =
            (whole.qkv[0].to_f32_vec()?, whole.d_out.to_f32_vec()?, whole.lse.to_f32_vec()?);
        let count = keys.len() / d;
        let (mut dk, mut dv) = (vec![0.0; parts * count * d], vec![0.0; parts * count * value_d]);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let add =
            |to: &mut [f32], by: f32, row: &[f32]| to.iter_mut().zip(row).for_each(|(to, x)| *to += by * x);
        for query in (0..heads * seq_q).filter(|&query| lse[query] != f32::NEG_INFINITY) {
            let q_block = query % seq_q / subject.blocks.q();
            let part = q_block / q_blocks.div_ceil(parts);
            let (q, d_out) = (&q[query * d..][..d], &d_out[query * value_d..][..value_d]);
            for mean in 0..count {
                let weight = weights[q_block * count + mean];
                if weight == f32::NEG_INFINITY {
                    continue;
                }
                let (key, value) = (&keys[mean * d..][..d], &values[mean * value_d..][..value_d]);
                let p = (subject.scale * dot(q, key) + weight - lse[query]).exp();
                let ds = subject.scale * p * (dot(d_out, value) - delta[query]);
                let at = part * count + mean;
                add(&mut dq[query * d..][..d], ds, key);
                add(&mut dk[at * d..][..d], ds, q);
                add(&mut dv[at * value_d..][..value_d], p, d_out);
            }
        }
        Ok([dq, dk, dv])
    }

    /// Adds the tail to the softmax of each query.
    fn add(&mut self, subject: &Subject<'_>, case: &Case) -> Result<(), Error> {
        let vec = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::to_f32_vec).transpose();
        let [heads, seq_q, _] = subject.extents();
        let (rows, d, value_d) = (case.mask.shape()[2], subject.head_dim, subject.value_dim);
        let q = case.qkv[0].to_f32_vec()?;
        let (values, lses) = (vec(&self.out)?, vec(&self.lse)?);
        let (keys, means, weights) = (vec(&self.k)?, vec(&self.v)?, vec(&self.weights)?);
        for query in 0..heads * seq_q {
            let q_block = query % seq_q / subject.blocks.q();
            let mut entries: Vec<(f32, &[f32])> = Vec::new();
            if let (Some(values), Some(lses)) = (&values, &lses) {
                let at = query / seq_q * rows + q_block;
                entries.push((lses[at], &values[at * value_d..][..value_d]));
            }
            if let (Some(keys), Some(means), Some(weights)) = (&keys, &means, &weights) {
                let count = keys.len() / d;
                for mean in 0..count {
                    let dot: f32 = (0..d).map(|i| q[query * d + i] * keys[mean * d + i]).sum();
                    let weight = weights[q_block * count + mean];
                    entries.push((subject.scale * dot + weight, &means[mean * value_d..][..value_d]));
                }
            }
            let [out, lse] = &mut self.expected;
            let (out, lse) = (&mut out[query * value_d..][..value_d], &mut lse[query]);
            let top = entries.iter().fold(*lse, |top, entry| top.max(entry.0));
            if top == f32::NEG_INFINITY {
                continue;
            }
            let kept = (*lse - top).exp();
            let sum = kept + entries.iter().map(|entry| (entry.0 - top).exp()).sum::<f32>();
            out.iter_mut().for_each(|x| *x *= kept / sum);
            for (score, value) in entries {
                let share = (score - top).exp() / sum;
                out.iter_mut().zip(value).for_each(|(out, x)| *out += share * x);
            }
            *lse = top + sum.ln();
        }
        Ok(())
    }

    pub(crate) fn to(&self, device: &Device) -> Result<Self, Error> {
        let to = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.to(device)).transpose();
        Ok(TailCase {
            out: to(&self.out)?,
            lse: to(&self.lse)?,
            k: to(&self.k)?,
            v: to(&self.v)?,
            weights: to(&self.weights)?,
            pieces: to(&self.pieces)?,
            expected: self.expected.clone(),
        })
    }
}

fn rounded(dtype: DType, values: &[f32], shape: &[usize]) -> Result<Tensor, Error> {
    match dtype {
        DType::F16 => {
            Tensor::from_slice(&values.iter().map(|x| half::f16::from_f32(*x)).collect::<Vec<_>>(), shape)
        }
        _ => Tensor::from_slice(&values.iter().map(|x| half::bf16::from_f32(*x)).collect::<Vec<_>>(), shape),
    }
}

/// `x`, and the rows of `mean` in those of each block, as f32.
pub(crate) fn with_means(x: &Tensor, mean: &Tensor, block: usize) -> Result<Tensor, Error> {
    let (mut data, means) = (x.to_f32_vec()?, mean.to_f32_vec()?);
    let [seq, d] = [x.shape()[2], x.shape()[3]];
    let blocks = mean.shape()[2];
    for (row, to) in data.chunks_exact_mut(d).enumerate() {
        let at = row / seq * blocks + row % seq / block;
        to.iter_mut().zip(&means[at * d..][..d]).for_each(|(to, x)| *to += x);
    }
    Tensor::from_slice(&data, x.shape())
}
