//! Attention with a tail, from its definition: the means of dropped blocks are keys like others.

use super::backward::sized;
use super::{Problem, Reference, ReferenceGradients, row, softmax};
use crate::mask::{BlockMask, FULL, PARTIAL};
use crate::tail::{Mean, Row, Tail, TailError};
use crate::{Error, MaskMod, Tensor, parallel};
use rayon::prelude::*;

/// [`attention_f64`](super::attention_f64) with a [tail](crate::tail) for the blocks that `mask` drops.
///
/// # Errors
/// As [`attention_f64`](super::attention_f64); [`Error::Tail`] for a mask that does not say what it drops, or a tail of a run of keys that is no
/// number of blocks.
///
/// # Panics
/// When the mask function does.
pub fn attention_with_tail_f64(
    [q, k, v]: [&Tensor; 3],
    mask: &BlockMask,
    scale: f32,
    mask_mod: Option<&dyn MaskMod>,
    tail: Tail,
) -> Result<Reference, Error> {
    let problem = Problem::new([q, k, v], mask, scale, None, mask_mod)?;
    let tails = Tails::new(&problem, mask, tail)?;
    let one_query = |query: usize| {
        let (attended, dropped) = (problem.attended(query), tails.of(query));
        let keys = attended.iter().map(|at| (at.score, row(&problem.v, at.key, problem.value_d)));
        let means = dropped.iter().map(|mean| (mean.score, &mean.value[..]));
        softmax(&keys.chain(means).collect::<Vec<_>>(), problem.value_d)
    };
    let rows: Vec<(Vec<f64>, f64)> =
        parallel::run(|| (0..problem.queries()).into_par_iter().map(one_query).collect());
    let lse = rows.iter().map(|row| row.1).collect();
    Ok(Reference { out: rows.into_iter().flat_map(|row| row.0).collect(), lse })
}

/// The gradients of `sum(out · d_out) + sum(lse · d_lse)` by q, k and v, with `out` and `lse` those of [`attention_with_tail_f64`]: see
/// [`attention_backward_f64`](super::attention_backward_f64). Which blocks are dropped is taken as given. A mean of n rows gives each of them
/// the nth part of its gradient.
///
/// # Errors
/// As [`attention_with_tail_f64`] and [`attention_backward_f64`](super::attention_backward_f64).
///
/// # Panics
/// When the mask function does.
pub fn attention_with_tail_backward_f64(
    [q, k, v]: [&Tensor; 3],
    (d_out, d_lse): (&Tensor, Option<&Tensor>),
    mask: &BlockMask,
    scale: f32,
    mask_mod: Option<&dyn MaskMod>,
    tail: Tail,
) -> Result<ReferenceGradients, Error> {
    let problem = Problem::new([q, k, v], mask, scale, None, mask_mod)?;
    let tails = Tails::new(&problem, mask, tail)?;
    let d_out = sized(d_out, problem.queries() * problem.value_d)?;
    let d_lse = d_lse.map(|d_lse| sized(d_lse, problem.queries())).transpose()?;
    let mut found = ReferenceGradients {
        dq: vec![0.0; problem.q.len()],
        dk: vec![0.0; problem.k.len()],
        dv: vec![0.0; problem.v.len()],
    };
    for query in 0..problem.queries() {
        let d_lse = d_lse.as_ref().map_or(0.0, |d_lse| d_lse[query]);
        one_query(&problem, &tails, query, (row(&d_out, query, problem.value_d), d_lse), &mut found);
    }
    Ok(found)
}

/// Adds what a query gives to its own gradient and to others'.
fn one_query(
    problem: &Problem<'_>,
    tails: &Tails<'_>,
    query: usize,
    (d_out, d_lse): (&[f64], f64),
    found: &mut ReferenceGradients,
) {
    let (d, value_d) = (problem.d, problem.value_d);
    // Scores, the rows of q, k and v that each is made of, their means, and whose the query is.
    let attended = problem.attended(query).into_iter().map(|at| Term {
        score: at.score,
        queries: query..query + 1,
        keys: at.key..at.key + 1,
        query: row(&problem.q, query, d).to_vec(),
        key: row(&problem.k, at.key, d).to_vec(),
        value: row(&problem.v, at.key, value_d).to_vec(),
    });
    let terms: Vec<Term> = attended.chain(tails.of(query)).collect();
    let max = terms.iter().map(|term| term.score).fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY && !terms.iter().any(|term| term.score.is_nan()) {
        return;
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let sum: f64 = terms.iter().map(|term| (term.score - max).exp()).sum();
    let weights: Vec<(f64, f64)> =
        terms.iter().map(|term| ((term.score - max).exp() / sum, dot(d_out, &term.value))).collect();
    let mean: f64 = weights.iter().map(|(p, dp)| p * dp).sum();
    for (term, (p, dp)) in terms.iter().zip(weights).filter(|(_, (p, _))| *p != 0.0) {
        let ds = p * (dp - mean + d_lse) * problem.scale;
        for (to, rows, gradient, factor) in [
            (&mut found.dq, &term.queries, &term.key[..], ds),
            (&mut found.dk, &term.keys, &term.query[..], ds),
            (&mut found.dv, &term.keys, d_out, p),
        ] {
            let (d, share) = (gradient.len(), factor / rows.len() as f64);
            for to in to[rows.start * d..rows.end * d].chunks_exact_mut(d) {
                to.iter_mut().zip(gradient).for_each(|(to, x)| *to += share * x);
            }
        }
    }
}

/// What a query attends to: a mean of keys, scored by a mean of queries.
struct Term {
    score: f64,
    /// Rows of q, heads and batches counted, and of k and v.
    queries: std::ops::Range<usize>,
    keys: std::ops::Range<usize>,
    query: Vec<f64>,
    key: Vec<f64>,
    value: Vec<f64>,
}

/// The means that stand for dropped blocks.
struct Tails<'a> {
    problem: &'a Problem<'a>,
    tail: Tail,
    /// Blocks in a run.
    run: usize,
    /// Of each block of the mask.
    is_dropped: Vec<bool>,
    is_whole: Vec<bool>,
}

impl<'a> Tails<'a> {
    fn new(problem: &'a Problem<'a>, mask: &BlockMask, tail: Tail) -> Result<Self, Error> {
        let run = tail.blocks_a_mean(problem.blocks)?;
        let classes = &problem.map.classes;
        let is_dropped = match tail {
            Tail::None => vec![false; classes.len()],
            _ => mask.dropped_map()?.ok_or(TailError::Unknown)?,
        };
        let kept = |class| class == FULL || class == PARTIAL && problem.mask_mod.is_none();
        let is_whole =
            classes.iter().zip(&is_dropped).map(|(&class, &dropped)| dropped || kept(class)).collect();
        Ok(Tails { problem, tail, run, is_dropped, is_whole })
    }

    fn of(&self, query: usize) -> Vec<Term> {
        let (problem, at) = (self.problem, self.problem.map_row(query));
        let kv_blocks = problem.map.shape[3];
        let of_row = at * kv_blocks..(at + 1) * kv_blocks;
        let row = Row {
            is_dropped: &self.is_dropped[of_row.clone()],
            is_whole: &self.is_whole[of_row],
            run: self.run,
            block: problem.blocks.kv(),
            seq_kv: problem.seq_kv,
        };
        row.means().map(|mean| self.term(query, &mean)).collect()
    }

    fn term(&self, query: usize, Mean { of, keys: weight }: &Mean) -> Term {
        let &Problem { seq_q, seq_kv, blocks, d, value_d, .. } = self.problem;
        let head = query / seq_q * seq_q;
        let queries = match self.tail {
            Tail::Block => {
                let first = query % seq_q / blocks.q() * blocks.q();
                head + first..head + (first + blocks.q()).min(seq_q)
            }
            _ => query..query + 1,
        };
        let start = self.problem.first_key(query);
        let keys = start + of.start * blocks.kv()..start + (of.end * blocks.kv()).min(seq_kv);
        let query = mean(&self.problem.q, queries.clone(), d);
        let key = mean(&self.problem.k, keys.clone(), d);
        let product: f64 = query.iter().zip(&key).map(|(x, y)| x * y).sum();
        Term {
            score: product * self.problem.scale + (*weight as f64).ln(),
            value: mean(&self.problem.v, keys.clone(), value_d),
            queries,
            keys,
            query,
            key,
        }
    }
}

/// The mean of rows.
fn mean(of: &[f64], rows: std::ops::Range<usize>, d: usize) -> Vec<f64> {
    let mut sum = vec![0.0; d];
    let count = rows.len() as f64;
    for at in rows {
        sum.iter_mut().zip(row(of, at, d)).for_each(|(sum, x)| *sum += x);
    }
    sum.iter_mut().for_each(|sum| *sum /= count);
    sum
}
