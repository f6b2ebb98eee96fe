//! The gradients, from the definition: P and its derivative, key by key, in f64.

use super::{Problem, row, wide};
use crate::mask::BlockMask;
use crate::tensor::TensorError;
use crate::{Error, MaskMod, ScoreMod, Tensor, parallel};
use rayon::prelude::*;

/// What [`attention_backward_f64`] found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ReferenceGradients {
    /// `[batch, heads, seq_q, d]`, row-major.
    pub dq: Vec<f64>,
    /// `[batch, kv_heads, seq_kv, d]`, row-major, summed over the query heads that share a key head.
    pub dk: Vec<f64>,
    /// As `dk`, with the d of v.
    pub dv: Vec<f64>,
}

/// The gradients of `sum(out · d_out) + sum(lse · d_lse)` by q, k and v, with `out` and `lse` those of
/// [`attention_f64`](super::attention_f64) for the same arguments. `d_out` is
/// `[batch, heads, seq_q, d]` with the d of v, `d_lse` `[batch, heads, seq_q]`.
///
/// With `s` the product before the score function and `P = softmax(score_mod(s))` of a row, and `dP = d_out · v` of each
/// of its keys (Dao et al., FlashAttention, arXiv 2205.14135, appendix B.2, with the gradient of lse, which is P, added):
/// `dv = P d_out`, `ds = P (dP - sum(P dP) + d_lse) score_mod'(s)`, `dq = scale · ds k`, `dk = scale · ds q`. A query that
/// attends to nothing has and gives none.
///
/// # Errors
/// As [`attention_f64`](super::attention_f64); [`TensorError::Length`] for a `d_out` or `d_lse` of another size.
///
/// # Panics
/// When a function does.
pub fn attention_backward_f64(
    [q, k, v]: [&Tensor; 3],
    (d_out, d_lse): (&Tensor, Option<&Tensor>),
    mask: &BlockMask,
    scale: f32,
    score_mod: Option<&dyn ScoreMod>,
    mask_mod: Option<&dyn MaskMod>,
) -> Result<ReferenceGradients, Error> {
    let problem = Problem::new([q, k, v], mask, scale, score_mod, mask_mod)?;
    let d_out = sized(d_out, problem.queries() * problem.value_d)?;
    let d_lse = match d_lse {
        Some(d_lse) => sized(d_lse, problem.queries())?,
        None => vec![0.0; problem.queries()],
    };
    let group = problem.heads / problem.kv_heads.max(1) * problem.seq_q;
    let zeros = |d: usize| vec![0.0; problem.seq_kv * d];
    // One key head after another: the queries that share it add to the same gradients.
    let one_key_head = |unit: usize| -> ReferenceGradients {
        let mut found =
            ReferenceGradients { dq: Vec::new(), dk: zeros(problem.d), dv: zeros(problem.value_d) };
        for (query, &d_lse) in d_lse.iter().enumerate().skip(unit * group).take(group) {
            let dq = one_query(&problem, query, row(&d_out, query, problem.value_d), d_lse, unit, &mut found);
            found.dq.extend(dq);
        }
        found
    };
    let units: Vec<ReferenceGradients> =
        parallel::run(|| (0..problem.batch * problem.kv_heads).into_par_iter().map(one_key_head).collect());
    let joined = |part: fn(&ReferenceGradients) -> &Vec<f64>| units.iter().flat_map(part).copied().collect();
    Ok(ReferenceGradients {
        dq: joined(|unit| &unit.dq),
        dk: joined(|unit| &unit.dk),
        dv: joined(|unit| &unit.dv),
    })
}

/// A query's own gradient; what it gives to the keys of head `unit` is added to theirs.
fn one_query(
    problem: &Problem,
    query: usize,
    d_out: &[f64],
    d_lse: f64,
    unit: usize,
    found: &mut ReferenceGradients,
) -> Vec<f64> {
    let (d, value_d) = (problem.d, problem.value_d);
    let [b, h, q] = problem.place(query);
    let attended = problem.attended(query);
    let mut dq = vec![0.0; d];
    let max = attended.iter().map(|at| at.score).fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY && !attended.iter().any(|at| at.score.is_nan()) {
        return dq;
    }
    let sum: f64 = attended.iter().map(|at| (at.score - max).exp()).sum();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let weighted: Vec<(f64, f64)> = attended
        .iter()
        .map(|at| ((at.score - max).exp() / sum, dot(d_out, row(&problem.v, at.key, value_d))))
        .collect();
    let mean: f64 = weighted.iter().map(|(p, dp)| p * dp).sum();
    for (at, (p, dp)) in attended.iter().zip(weighted) {
        if p == 0.0 {
            continue;
        }
        let slope =
            problem.score_mod.map_or(1.0, |f| f64::from(f.gradient(at.product, b, h, q, at.position)));
        let ds = p * (dp - mean + d_lse) * slope * problem.scale;
        let (query_row, key_row) = (row(&problem.q, query, d), row(&problem.k, at.key, d));
        let own = at.key - unit * problem.seq_kv;
        dq.iter_mut().zip(key_row).for_each(|(dq, k)| *dq += ds * k);
        found.dk[own * d..][..d].iter_mut().zip(query_row).for_each(|(dk, q)| *dk += ds * q);
        found.dv[own * value_d..][..value_d].iter_mut().zip(d_out).for_each(|(dv, d_out)| *dv += p * d_out);
    }
    dq
}

pub(super) fn sized(tensor: &Tensor, needed: usize) -> Result<Vec<f64>, Error> {
    let found = tensor.elements();
    if found != needed {
        return Err(TensorError::Length { found, needed, shape: tensor.shape().to_vec() }.into());
    }
    wide(tensor)
}
