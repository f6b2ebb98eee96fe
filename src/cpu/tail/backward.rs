//! What the means give to the gradients. A mean of n rows gives each of them the nth part of its own.

use super::{At, Tails};
use crate::cpu::gemm::{Matrix, product};
use crate::cpu::softmax::weights;
use crate::operands::Shape;
use crate::tail::Mean;
use std::f32::consts::LN_2;

/// The queries of a block, widened.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Queries<'a> {
    pub(in crate::cpu) q: &'a [f32],
    pub(in crate::cpu) d_out: &'a [f32],
    /// Of the whole softmax.
    pub(in crate::cpu) lse: &'a [f32],
    pub(in crate::cpu) delta: &'a [f32],
}

/// What the queries of a block say of the means that their mean query scores: with `l` the log-sum-exp of those and α = exp(l − lse) of each
/// query, `Σ α d_out` and `Σ α δ`.
pub(in crate::cpu) struct OfBlock {
    lse: f32,
    d_out: Vec<f32>,
    delta: f32,
}

impl Tails {
    /// Adds the means' part of the gradient of a block's queries, `[rows, d]`. For the block tail, what the keys' gradients want of the block.
    pub(in crate::cpu) fn by_query(&self, at: At, queries: Queries<'_>, dq: &mut [f32]) -> Option<OfBlock> {
        let means: Vec<Mean> = self.row(at).means().collect();
        if means.is_empty() {
            return None;
        }
        let of = self.gather(at, means);
        let (Shape { d, value_d, .. }, columns) = (self.shape, of.means.len());
        let (keys, values) = (Matrix::rows(&of.keys, d), Matrix::rows(&of.values, value_d).transposed());
        if !self.by_block {
            let mut p = self.scores(queries.q, &of);
            let mut ds = vec![0.0; p.len()];
            product(1.0, Matrix::rows(queries.d_out, value_d), values, 0.0, &mut ds);
            let rows = p.chunks_exact_mut(columns).zip(ds.chunks_exact_mut(columns));
            for ((p, ds), (&lse, &delta)) in rows.zip(queries.lse.iter().zip(queries.delta)) {
                weights(p, lse);
                to_gradient(p, ds, delta);
            }
            product(self.scale, Matrix::rows(&ds, columns), keys, 1.0, dq);
            return None;
        }
        let (_, lse) = self.of_mean_query(at, &of);
        let of_block = OfBlock::new(queries, value_d, lse * LN_2);
        let mut p = self.scores(self.query(at), &of);
        let mut ds = vec![0.0; columns];
        product(1.0, Matrix::rows(&of_block.d_out, value_d), values, 0.0, &mut ds);
        weights(&mut p, of_block.lse);
        to_gradient(&p, &mut ds, of_block.delta);
        let mut mean = vec![0.0; d];
        let rows = queries.lse.len();
        product(self.scale / rows as f32, Matrix::rows(&ds, columns), keys, 0.0, &mut mean);
        for row in dq.chunks_exact_mut(d) {
            row.iter_mut().zip(&mean).for_each(|(dq, x)| *dq += x);
        }
        Some(of_block)
    }

    /// Adds the part of the gradients of a key block, `[keys, d]` and `[keys, value_d]`, that comes from a block of queries by the mean which its
    /// keys are part of.
    pub(in crate::cpu) fn by_key(
        &self,
        at: At,
        kv_block: usize,
        queries: Queries<'_>,
        of_block: Option<&OfBlock>,
        [dk, dv]: [&mut [f32]; 2],
    ) {
        let Some(mean) = self.row(at).mean_at(kv_block) else { return };
        let share = 1.0 / self.keys_of(&mean.of) as f32;
        let (of, Shape { d, value_d, .. }) = (self.gather(at, vec![mean]), self.shape);
        let (q, d_out, lse, delta) = match of_block {
            None => (queries.q, queries.d_out, queries.lse, queries.delta),
            Some(of) => (
                self.query(at),
                &of.d_out[..],
                std::slice::from_ref(&of.lse),
                std::slice::from_ref(&of.delta),
            ),
        };
        let mut p = self.scores(q, &of);
        let mut ds = vec![0.0; p.len()];
        let values = Matrix::rows(&of.values, value_d).transposed();
        product(1.0, Matrix::rows(d_out, value_d), values, 0.0, &mut ds);
        for ((p, ds), (&lse, &delta)) in
            p.chunks_exact_mut(1).zip(ds.chunks_exact_mut(1)).zip(lse.iter().zip(delta))
        {
            weights(p, lse);
            to_gradient(p, ds, delta);
        }
        for (alpha, left, right, to, d) in [(self.scale, &ds, q, dk, d), (1.0, &p, d_out, dv, value_d)] {
            let mut gradient = vec![0.0; d];
            product(
                share * alpha,
                Matrix::rows(left, 1).transposed(),
                Matrix::rows(right, d),
                0.0,
                &mut gradient,
            );
            for row in to.chunks_exact_mut(d) {
                row.iter_mut().zip(&gradient).for_each(|(to, x)| *to += x);
            }
        }
    }
}

impl OfBlock {
    fn new(queries: Queries<'_>, value_d: usize, lse: f32) -> Self {
        let mut of = OfBlock { lse, d_out: vec![0.0; value_d], delta: 0.0 };
        let rows = queries.d_out.chunks_exact(value_d).zip(queries.lse.iter().zip(queries.delta));
        for (d_out, (&row_lse, &delta)) in rows {
            // A row that attends to these means has a log-sum-exp of at least theirs.
            let mut share = [lse * std::f32::consts::LOG2_E];
            weights(&mut share, row_lse);
            let [share] = share;
            of.d_out.iter_mut().zip(d_out).for_each(|(to, x)| *to += share * x);
            of.delta += share * delta;
        }
        of
    }
}

/// Turns `d_out · v` into the gradients of scores of these weights. What has no weight has no gradient, be its `d_out · v` what it may.
fn to_gradient(p: &[f32], ds: &mut [f32], delta: f32) {
    ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = if *p == 0.0 { 0.0 } else { *p * (*ds - delta) });
}
