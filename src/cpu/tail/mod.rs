//! The means that stand for dropped blocks: a few more keys for every row.

mod backward;

pub(super) use backward::{OfBlock, Queries};

use super::block_means;
use super::gemm::{Matrix, product};
use super::softmax::RowState;
use crate::mask::{BlockMask, BlockSize, FULL, PARTIAL};
use crate::operands::Shape;
use crate::tail::{Mean, Row, Tail, TailError};
use crate::{Error, Tensor};
use std::f32::consts::LOG2_E;

/// What the means of a call are made of.
pub(super) struct Tails {
    by_block: bool,
    run: usize,
    blocks: BlockSize,
    shape: Shape,
    scale: f32,
    /// Block means: of q (for the block tail), of k and of v, each head's contiguous.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Of each block of the mask.
    is_dropped: Vec<bool>,
    is_whole: Vec<bool>,
    /// The mask's own batch and heads.
    mask: [usize; 2],
}

/// A block of queries.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) b: usize,
    pub(super) h: usize,
    pub(super) q_block: usize,
}

/// The means of a row, as rows of keys and of values.
struct Gathered {
    means: Vec<Mean>,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// The logarithms of their numbers of keys, to base 2.
    weights: Vec<f32>,
}

impl Tails {
    /// Nothing where there is no tail. `masked`: whether a mask function applies within the blocks of [`BlockMask::kv`].
    ///
    /// # Errors
    /// [`TailError`]; [`TensorError`](crate::TensorError) for tensors that are not of a half dtype.
    pub(super) fn new(
        [q, k, v]: [&Tensor; 3],
        shape: &Shape,
        mask: &BlockMask,
        (scale, masked): (f32, bool),
        tail: Tail,
    ) -> Result<Option<Self>, Error> {
        let (by_block, blocks) = (tail == Tail::Block, mask.blocks());
        let run = tail.blocks_a_mean(blocks)?;
        if tail == Tail::None {
            return Ok(None);
        }
        let is_dropped = mask.dropped_map()?.ok_or(TailError::Unknown)?;
        let kept_whole = |class| class == FULL || class == PARTIAL && !masked;
        let classes = mask.to_dense()?.classes;
        let is_whole = classes.iter().zip(&is_dropped).map(|(&class, &dropped)| dropped || kept_whole(class));
        Ok(Some(Tails {
            by_block,
            run,
            blocks,
            shape: *shape,
            scale,
            q: if by_block { block_means(q, blocks.q())? } else { Vec::new() },
            k: block_means(k, blocks.kv())?,
            v: block_means(v, blocks.kv())?,
            is_whole: is_whole.collect(),
            is_dropped,
            mask: [mask.batch(), mask.heads()],
        }))
    }

    fn row(&self, At { b, h, q_block }: At) -> Row<'_> {
        let [q_blocks, kv_blocks] = self.grid();
        let [batch, heads] = self.mask;
        let at = ((b % batch) * heads + h % heads) * q_blocks + q_block;
        let blocks = at * kv_blocks..(at + 1) * kv_blocks;
        Row {
            is_dropped: &self.is_dropped[blocks.clone()],
            is_whole: &self.is_whole[blocks],
            run: self.run,
            block: self.blocks.kv(),
            seq_kv: self.shape.seq_kv,
        }
    }

    fn grid(&self) -> [usize; 2] {
        let Shape { seq_q, seq_kv, .. } = self.shape;
        [seq_q.div_ceil(self.blocks.q()), seq_kv.div_ceil(self.blocks.kv())]
    }

    /// Keys of some blocks.
    fn keys_of(&self, blocks: &std::ops::Range<usize>) -> usize {
        (blocks.end * self.blocks.kv()).min(self.shape.seq_kv) - blocks.start * self.blocks.kv()
    }

    fn gather(&self, at: At, means: Vec<Mean>) -> Gathered {
        let Shape { heads, d, value_d, .. } = self.shape;
        let unit = self.shape.kv_unit(at.b * heads + at.h);
        let first = unit * self.grid()[1];
        let mut gathered = Gathered {
            keys: vec![0.0; means.len() * d],
            values: vec![0.0; means.len() * value_d],
            weights: means.iter().map(|mean| (mean.keys as f32).log2()).collect(),
            means,
        };
        let Gathered { means, keys, values, .. } = &mut gathered;
        for (to, of, d) in [(keys, &self.k, d), (values, &self.v, value_d)] {
            for (to, mean) in to.chunks_exact_mut(d).zip(&*means) {
                let all = self.keys_of(&mean.of) as f32;
                for block in mean.of.clone() {
                    let share = self.keys_of(&(block..block + 1)) as f32 / all;
                    let row = &of[(first + block) * d..][..d];
                    to.iter_mut().zip(row).for_each(|(to, x)| *to += share * x);
                }
            }
        }
        gathered
    }

    /// The mean query of a block.
    fn query(&self, At { b, h, q_block }: At) -> &[f32] {
        let Shape { heads, d, .. } = self.shape;
        &self.q[((b * heads + h) * self.grid()[0] + q_block) * d..][..d]
    }

    /// Scores of queries by the means, times log2 e: rows of queries, columns of means.
    fn scores(&self, queries: &[f32], of: &Gathered) -> Vec<f32> {
        let (d, columns) = (self.shape.d, of.means.len());
        let mut scores = vec![0.0; queries.len() / d * columns];
        let keys = Matrix::rows(&of.keys, d).transposed();
        product(self.scale * LOG2_E, Matrix::rows(queries, d), keys, 0.0, &mut scores);
        for row in scores.chunks_exact_mut(columns) {
            row.iter_mut().zip(&of.weights).for_each(|(score, weight)| *score += weight);
        }
        scores
    }

    /// Adds the means to the softmax of a block's queries. `acc`: their rows of the output so far. Where nothing is dropped, nothing changes.
    pub(super) fn absorb(&self, at: At, q: &[f32], states: &mut [RowState], acc: &mut [f32]) {
        let means: Vec<Mean> = self.row(at).means().collect();
        if means.is_empty() {
            return;
        }
        let (of, value_d) = (self.gather(at, means), self.shape.value_d);
        let (mut scores, values) = match self.by_block {
            false => (self.scores(q, &of), of.values),
            true => {
                let (value, lse) = self.of_mean_query(at, &of);
                (vec![lse; states.len()], value)
            }
        };
        let columns = values.len() / value_d;
        let rows = scores.chunks_exact_mut(columns).zip(states).zip(acc.chunks_exact_mut(value_d));
        for ((scores, state), acc) in rows {
            let rescale = state.absorb(scores);
            if rescale != 1.0 {
                acc.iter_mut().for_each(|x| *x *= rescale);
            }
        }
        product(1.0, Matrix::rows(&scores, columns), Matrix::rows(&values, value_d), 1.0, acc);
    }

    /// What the mean query of a block makes of the means: a value, and the log-sum-exp to base 2.
    fn of_mean_query(&self, at: At, of: &Gathered) -> (Vec<f32>, f32) {
        let mut scores = self.scores(self.query(at), of);
        let (mut state, mut value) = (RowState::NEW, vec![0.0; self.shape.value_d]);
        state.absorb(&mut scores);
        let (factor, lse) = state.finish();
        let weights = Matrix::rows(&scores, of.means.len());
        product(factor, weights, Matrix::rows(&of.values, self.shape.value_d), 0.0, &mut value);
        (value, lse * LOG2_E)
    }
}
