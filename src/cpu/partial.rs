//! Step 2 for the blocks that a mask function keeps in part: only the keys that it keeps score.

use super::score::sanitised;
use crate::mask::{BlockSize, PARTIAL, span};
use crate::operands::Rows;
use crate::select::FINE;
use crate::tensor::Half;
use crate::user_code::UserCode;
use crate::{DType, Error, MaskMod, Tensor};
use rayon::prelude::*;

/// What the scores of partial blocks are made of.
pub(crate) struct PartialScores<'a> {
    pub(crate) function: &'a dyn MaskMod,
    /// `[batch, kv_heads, seq_kv, d]`, f16 or bf16.
    pub(crate) k: &'a Tensor,
    pub(crate) blocks: BlockSize,
    /// Of queries and of keys.
    pub(crate) seqs: (usize, usize),
    pub(crate) scale: f32,
    /// Whether the means are those of [`FINE`] keys each, the best of which counts.
    pub(crate) by_keys: bool,
}

/// One head of a call.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    pub(crate) batch: usize,
    pub(crate) head: usize,
    /// `batch · kv_heads + kv_head`.
    pub(crate) kv_unit: usize,
}

impl PartialScores<'_> {
    /// Overwrites the logits of the partial blocks of one head: `scale · q̄_i · k̄_ij`, where k̄_ij is the mean of the keys of block j
    /// that the function keeps for at least one query of block i, or the largest of those of the runs of a block. `classes` and `logits` are `[q_blocks, kv_blocks]`, `q_means`
    /// `[q_blocks, d]`.
    pub(crate) fn overwrite(
        &self,
        code: &UserCode<'_>,
        head: Head,
        classes: &[u8],
        q_means: &[f32],
        logits: &mut [f32],
    ) -> Result<(), Error> {
        match self.k.dtype() {
            DType::F16 => self.overwrite_of::<half::f16>(code, head, classes, q_means, logits),
            _ => self.overwrite_of::<half::bf16>(code, head, classes, q_means, logits),
        }
    }

    fn overwrite_of<T: Half>(
        &self,
        code: &UserCode<'_>,
        head: Head,
        classes: &[u8],
        q_means: &[f32],
        logits: &mut [f32],
    ) -> Result<(), Error> {
        let (d, size) = (self.k.shape()[3], self.blocks.kv());
        let kv_blocks = self.seqs.1.div_ceil(size);
        let rows = Rows::<T>::of(self.k)?;
        // A head may be all there is, and its rows as long as the sequence: they are shared out among the threads.
        let of_row = |(tile, mean): &mut (Vec<f32>, Vec<f32>),
                      (i, (classes, logits)): (usize, (&[u8], &mut [f32]))| {
            let q_mean = &q_means[i * d..][..d];
            for (j, logit) in logits.iter_mut().enumerate().filter(|(j, _)| classes[*j] == PARTIAL) {
                if code.is_interrupted() {
                    return;
                }
                let kept = self.kept_keys(code, head, i, j);
                let tile = &mut tile[..kept.len() * d];
                rows.widen(head.kv_unit, j * size, tile);
                let run = if self.by_keys { FINE } else { kept.len() };
                let mut score_of = |(rows, kept): (&[f32], &[bool])| {
                    mean.fill(0.0);
                    for (row, _) in rows.chunks_exact(d).zip(kept).filter(|&(_, kept)| *kept) {
                        mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
                    }
                    let count = kept.iter().filter(|kept| **kept).count() as f32;
                    let products = q_mean.iter().zip(&*mean).map(|(q, sum)| q * (sum / count));
                    // Nothing kept is no number.
                    sanitised(self.scale * products.sum::<f32>())
                };
                let scores = tile.chunks(run * d).zip(kept.chunks(run)).map(&mut score_of);
                *logit = scores.fold(f32::NEG_INFINITY, f32::max);
            }
        };
        let tiles = || (vec![0.0; size * d], vec![0.0; d]);
        let of_rows = classes.par_chunks(kv_blocks).zip(logits.par_chunks_mut(kv_blocks)).enumerate();
        of_rows.for_each_init(tiles, of_row);
        Ok(())
    }

    /// Of each key of block `j`, whether the function keeps it for a query of block `i`.
    fn kept_keys(&self, code: &UserCode<'_>, head: Head, i: usize, j: usize) -> Vec<bool> {
        let (queries, keys) = (span(i, self.blocks.q(), self.seqs.0), span(j, self.blocks.kv(), self.seqs.1));
        let (b, h) = (head.batch as i32, head.head as i32);
        let inside = code.inside();
        inside.calls(0);
        keys.map(|kv| queries.clone().any(|q| self.function.keep(b, h, q, kv))).collect()
    }
}
