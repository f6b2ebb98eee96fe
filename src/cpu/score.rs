//! Step 2: logits of block means.

use super::gemm::{Matrix, product};
use crate::DType;
use crate::select::FINE;

/// The largest magnitude a logit keeps: the difference of two stays finite.
const LIMIT: f32 = 3e38;

/// `Q̄ K̄ᵀ · scale` of one head, `[q_blocks, kv_blocks]`, sanitised: NaN is the lowest score there is, so that a
/// NaN in a key drops the key's block where it can and never reaches another block's score.
pub(crate) fn logits(q: &[f32], k: &[f32], d: usize, scale: f32) -> Vec<f32> {
    let [rows, columns] = [q, k].map(|means| means.len().checked_div(d).unwrap_or(0));
    let mut logits = vec![0.0; rows * columns];
    product(scale, Matrix::rows(q, d), Matrix::rows(k, d).transposed(), 0.0, &mut logits);
    for logit in &mut logits {
        *logit = sanitised(*logit);
    }
    logits
}

/// The same by keys, `[q_blocks, kv_blocks]`: of the products with the means of runs of `FINE` keys the largest of each block of `block`
/// keys. `fine` holds these means, of `dtype`; query means, times `scale`, are rounded to it. Products that are no numbers do not count.
pub(crate) fn logits_of_keys(
    q: &[f32],
    fine: &[f32],
    d: usize,
    block: usize,
    scale: f32,
    dtype: DType,
) -> Vec<f32> {
    /// Query blocks whose products are in memory at once.
    const ROWS: usize = 16;
    let runs = fine.len().checked_div(d).unwrap_or(0);
    let blocks = runs.div_ceil(block / FINE);
    let mut logits = Vec::with_capacity(q.len().checked_div(d).unwrap_or(0) * blocks);
    let mut products = vec![0.0; ROWS * runs];
    for q in q.chunks(ROWS * d) {
        let rounded: Vec<f32> = q.iter().map(|&x| rounded(x * scale, dtype)).collect();
        let products = &mut products[..q.len() / d * runs];
        product(1.0, Matrix::rows(&rounded, d), Matrix::rows(fine, d).transposed(), 0.0, products);
        for row in products.chunks(runs) {
            let top = |block: &[f32]| block.iter().copied().fold(f32::NEG_INFINITY, f32::max).min(LIMIT);
            logits.extend(row.chunks(block / FINE).map(top));
        }
    }
    logits
}

/// To the nearest of a half type.
pub(super) fn rounded(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => half::f16::from_f32(x).to_f32(),
        _ => half::bf16::from_f32(x).to_f32(),
    }
}

/// A NaN becomes -inf, and the rest is clamped to a finite range.
pub(super) fn sanitised(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.clamp(-LIMIT, LIMIT) }
}
