//! The slow oracle: attention in f64, one query at a time, written apart from the executors it judges.
//!
//! It takes the inputs as they are rounded and the block mask as it is given, so what it measures is the arithmetic
//! of an executor and nothing else.

mod backward;
mod tail;

pub use backward::{ReferenceGradients, attention_backward_f64};
pub use tail::{attention_with_tail_backward_f64, attention_with_tail_f64};

use crate::mask::{BlockMask, BlockSize, DenseMap, EMPTY, PARTIAL};
use crate::tensor::TensorError;
use crate::{Error, MaskMod, ScoreMod, Tensor, parallel};
use rayon::prelude::*;

/// What [`attention_f64`] found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Reference {
    /// `[batch, heads, seq_q, d]`, row-major, with the d of v.
    pub out: Vec<f64>,
    /// `[batch, heads, seq_q]`, natural logarithm; -inf for a query that attends to nothing.
    pub lse: Vec<f64>,
}

/// Attention of q `[batch, heads, seq_q, d]` over k and v `[batch, kv_heads, seq_kv, d]` in f64, over the kept blocks of
/// `mask`. `mask_mod` is asked in its partial blocks only; functions see the score rounded to f32, as they are in f32.
///
/// # Errors
/// [`TensorError`] for tensors that do not belong together, [`MaskError::Fit`](crate::mask::MaskError::Fit) for a mask
/// of other sizes.
///
/// # Panics
/// When a function does.
pub fn attention_f64(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &BlockMask,
    scale: f32,
    score_mod: Option<&dyn ScoreMod>,
    mask_mod: Option<&dyn MaskMod>,
) -> Result<Reference, Error> {
    let problem = Problem::new([q, k, v], mask, scale, score_mod, mask_mod)?;
    let one_query = |query: usize| -> (Vec<f64>, f64) {
        let attended = problem.attended(query);
        let keys = attended.iter().map(|at| (at.score, row(&problem.v, at.key, problem.value_d)));
        softmax(&keys.collect::<Vec<_>>(), problem.value_d)
    };
    let rows: Vec<(Vec<f64>, f64)> =
        parallel::run(|| (0..problem.queries()).into_par_iter().map(one_query).collect());
    let lse = rows.iter().map(|row| row.1).collect();
    Ok(Reference { out: rows.into_iter().flat_map(|row| row.0).collect(), lse })
}

/// The mean of values by the softmax of their scores, and the logarithm of the sum of exponentials.
fn softmax(terms: &[(f64, &[f64])], d: usize) -> (Vec<f64>, f64) {
    let mut out = vec![0.0; d];
    let max = terms.iter().map(|term| term.0).fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY && !terms.iter().any(|term| term.0.is_nan()) {
        return (out, f64::NEG_INFINITY);
    }
    let mut sum = 0.0;
    for (score, value) in terms {
        let weight = (score - max).exp();
        sum += weight;
        out.iter_mut().zip(*value).for_each(|(out, v)| *out += weight * v);
    }
    out.iter_mut().for_each(|out| *out /= sum);
    (out, max + sum.ln())
}

/// The inputs, widened, and who attends to whom.
struct Problem<'a> {
    heads: usize,
    kv_heads: usize,
    seq_q: usize,
    seq_kv: usize,
    d: usize,
    value_d: usize,
    batch: usize,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    map: DenseMap,
    blocks: BlockSize,
    scale: f64,
    score_mod: Option<&'a dyn ScoreMod>,
    mask_mod: Option<&'a dyn MaskMod>,
}

/// A key that a query attends to.
struct Attended {
    /// Its row of k and v, heads and batches counted.
    key: usize,
    /// Its position in the sequence.
    position: i32,
    /// The scaled product, as functions see it.
    product: f32,
    /// What the softmax takes.
    score: f64,
}

fn row(rows: &[f64], at: usize, d: usize) -> &[f64] {
    &rows[at * d..][..d]
}

impl<'a> Problem<'a> {
    fn new(
        [q, k, v]: [&Tensor; 3],
        mask: &BlockMask,
        scale: f32,
        score_mod: Option<&'a dyn ScoreMod>,
        mask_mod: Option<&'a dyn MaskMod>,
    ) -> Result<Self, Error> {
        let [batch, heads, seq_q, d] = dimensions("q", q)?;
        let [kv_batch, kv_heads, seq_kv, kv_d] = dimensions("k", k)?;
        let v_dimensions = dimensions("v", v)?;
        for (dimension, sizes, first, second) in [
            ("batch", (batch, kv_batch), "q", "k"),
            ("d", (d, kv_d), "q", "k"),
            ("batch", (kv_batch, v_dimensions[0]), "k", "v"),
            ("kv_heads", (kv_heads, v_dimensions[1]), "k", "v"),
            ("seq_kv", (seq_kv, v_dimensions[2]), "k", "v"),
        ] {
            if sizes.0 != sizes.1 {
                return Err(TensorError::Dimension { dimension, sizes, first, second }.into());
            }
        }
        if heads.checked_rem(kv_heads).unwrap_or(heads) != 0 {
            return Err(TensorError::HeadGroups { heads, kv_heads }.into());
        }
        mask.check_fits(batch, heads, seq_q, seq_kv)?;
        Ok(Problem {
            heads,
            kv_heads,
            seq_q,
            seq_kv,
            d,
            value_d: v_dimensions[3],
            batch,
            q: wide(q)?,
            k: wide(k)?,
            v: wide(v)?,
            map: mask.to_dense()?,
            blocks: mask.blocks(),
            scale: f64::from(scale),
            score_mod,
            mask_mod,
        })
    }

    /// Rows of q, heads and batches counted.
    fn queries(&self) -> usize {
        self.batch * self.heads * self.seq_q
    }

    /// Batch, head and position of a query.
    fn place(&self, query: usize) -> [i32; 3] {
        let (head, i) = (query / self.seq_q, query % self.seq_q);
        [head / self.heads, head % self.heads, i].map(|x| x as i32)
    }

    /// The first row of k of a query's key head.
    fn first_key(&self, query: usize) -> usize {
        let [b, h, _] = self.place(query).map(|x| x as usize);
        (b * self.kv_heads + h * self.kv_heads / self.heads) * self.seq_kv
    }

    /// The row of the mask that a query's block is.
    fn map_row(&self, query: usize) -> usize {
        let [b, h, i] = self.place(query).map(|x| x as usize);
        let [batch, heads, q_blocks, _] = self.map.shape;
        ((b % batch) * heads + h % heads) * q_blocks + i / self.blocks.q()
    }

    fn attended(&self, query: usize) -> Vec<Attended> {
        let [bi, hi, qi] = self.place(query);
        let (kv_start, map_row, kv_blocks) = (self.first_key(query), self.map_row(query), self.map.shape[3]);
        let mut attended = Vec::new();
        for j in 0..self.seq_kv {
            let class = self.map.classes[map_row * kv_blocks + j / self.blocks.kv()];
            let ji = j as i32;
            let hidden = class == PARTIAL && self.mask_mod.is_some_and(|f| !f.keep(bi, hi, qi, ji));
            if class == EMPTY || hidden {
                continue;
            }
            let key = kv_start + j;
            let pairs = row(&self.q, query, self.d).iter().zip(row(&self.k, key, self.d));
            let exact = pairs.map(|(x, y)| x * y).sum::<f64>() * self.scale;
            let product = exact as f32;
            let score = self.score_mod.map_or(exact, |f| f64::from(f.score(product, bi, hi, qi, ji)));
            attended.push(Attended { key, position: ji, product, score });
        }
        attended
    }
}

/// `‖found - reference‖ / ‖reference‖` in the Frobenius norm, over the values that are NaN in both left out.
///
/// A NaN on one side only, an infinity on one side only, or lists of different lengths give NaN, which is not below any
/// bound: write `assert!(relative_error(..) <= bound)`. A reference of zeros gives 0 or infinity.
pub fn relative_error(found: &[f32], reference: &[f64]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (delta, expected) in differences(found, reference) {
        difference += delta * delta;
        norm += if expected.is_finite() { expected * expected } else { 0.0 };
    }
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// The largest `|found - reference|`; equal infinities and NaN in both differ by 0, and what
/// [`relative_error`] calls NaN is NaN here too.
pub fn largest_difference(found: &[f32], reference: &[f64]) -> f64 {
    let larger = |max: f64, (delta, _): (f64, f64)| if delta > max || delta.is_nan() { delta } else { max };
    differences(found, reference).fold(0.0, larger)
}

/// `|found - reference|` and the reference, element by element.
fn differences(found: &[f32], reference: &[f64]) -> impl Iterator<Item = (f64, f64)> {
    let lengths = (found.len() != reference.len()).then_some((f64::NAN, 0.0));
    let pairs = found.iter().zip(reference).map(|(&found, &expected)| {
        let found = f64::from(found);
        let same = found == expected || found.is_nan() && expected.is_nan();
        let delta = if same { 0.0 } else { (found - expected).abs() };
        (if delta.is_infinite() { f64::NAN } else { delta }, expected)
    });
    pairs.chain(lengths)
}

fn dimensions(what: &str, tensor: &Tensor) -> Result<[usize; 4], TensorError> {
    <[usize; 4]>::try_from(tensor.shape()).map_err(|_| TensorError::Rank {
        what: what.into(),
        found: tensor.shape().len(),
        needed: 4,
        shape: tensor.shape().to_vec(),
        layout: "they are batch, heads, sequence and head dimension".into(),
    })
}

fn wide(tensor: &Tensor) -> Result<Vec<f64>, Error> {
    Ok(tensor.to_f32_vec()?.into_iter().map(f64::from).collect())
}
