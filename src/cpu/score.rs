//! Step 2: logits of block means.

use super::gemm::{Matrix, product};

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

/// A NaN becomes -inf, and the rest is clamped to a finite range.
pub(super) fn sanitised(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.clamp(-LIMIT, LIMIT) }
}
