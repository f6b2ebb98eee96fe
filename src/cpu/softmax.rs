//! One row of the online softmax, in base 2, written so that it vectorises on any target.

/// Independent accumulators of a reduction: enough for two AVX-512 or eight SSE registers.
const LANES: usize = 32;

/// `2^x` for x ≤ 0 with a relative error of at most 2e-7; 0 below -126, NaN for NaN.
///
/// The polynomial interpolates `(2^f - 1) / f` at the Chebyshev nodes of [-1/2, 1/2] (error 9.2e-9, so that rounding
/// dominates), and is exactly 1 at 0. The standard library's `exp2` is a call per element, four times slower here.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it leaves the nearest integer in the low bits
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND);
    let mut p = 0.000_154_531_63;
    p = p * f + 0.001_339_086_3;
    p = p * f + 0.009_618_083;
    p = p * f + 0.055_503_57;
    p = p * f + 0.240_226_5;
    p = p * f + std::f32::consts::LN_2; // which is what the interpolation gives too
    let two_to_n = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let y = (p * f + 1.0) * two_to_n;
    if x < -126.0 { 0.0 } else { y }
}

/// Turns the scores of a row (times log2 e) into its weights, for its log-sum-exp `lse`: 0 where there is nothing to attend
/// to.
pub(super) fn weights(scores: &mut [f32], lse: f32) {
    if lse == f32::NEG_INFINITY {
        return scores.fill(0.0);
    }
    let lse = lse * std::f32::consts::LOG2_E;
    scores.iter_mut().for_each(|x| *x = exp2(*x - lse));
}

/// Running maximum (in base 2) and sum of one query.
#[derive(Clone, Copy)]
pub(super) struct RowState {
    max: f32,
    sum: f32,
}

impl RowState {
    /// Nothing seen yet.
    pub(super) const NEW: RowState = RowState { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Turns scores (times log2 e) into weights and says by what the row accumulated so far is to be scaled.
    ///
    /// A NaN score makes its row NaN and touches no other; a row whose scores are all -inf gets weights of 0.
    pub(super) fn absorb(&mut self, scores: &mut [f32]) -> f32 {
        let max = self.max.max(row_max(scores));
        let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let rescale = exp2(self.max - base);
        self.sum = self.sum * rescale + weigh(scores, base);
        self.max = max;
        rescale
    }

    /// What the accumulated row is to be multiplied with, and its natural log-sum-exp.
    pub(super) fn finish(&self) -> (f32, f32) {
        if self.sum == 0.0 {
            return (0.0, f32::NEG_INFINITY);
        }
        (1.0 / self.sum, (self.max + self.sum.log2()) * std::f32::consts::LN_2)
    }
}

/// The largest score that is not NaN.
fn row_max(scores: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = scores.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| max.max(x))
}

/// Replaces scores by `2^(score - base)` and sums them.
fn weigh(scores: &mut [f32], base: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = scores.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp2(*x - base);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(chunks.into_remainder()) {
        *x = exp2(*x - base);
        *lane += *x;
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_keeps_its_bound() {
        for i in 0..1_000_000 {
            let x = -126.0 * (i as f32 / 1e6);
            let exact = f64::from(x).exp2();
            let error = (f64::from(exp2(x)) - exact).abs() / exact;
            assert!(error <= 2e-7, "{error:e} at {x}");
        }
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(-127.5), 0.0);
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn weights_of_a_known_sum_add_up_to_one() {
        let mut scores: Vec<f32> = (0..37).map(|i| ((i * 29) % 37) as f32 * 0.7 - 9.0).collect();
        let mut state = RowState::NEW;
        state.absorb(&mut scores.clone());
        let (_, lse) = state.finish();
        weights(&mut scores, lse);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{scores:?}");
        let mut nothing = [f32::NEG_INFINITY, f32::NAN, 3.0];
        weights(&mut nothing, f32::NEG_INFINITY);
        assert_eq!(nothing, [0.0; 3]);
    }

    #[test]
    fn a_row_without_scores_weighs_nothing() {
        let mut state = RowState::NEW;
        let mut scores = [f32::NEG_INFINITY; 37];
        assert_eq!(state.absorb(&mut scores), 0.0);
        assert_eq!(scores, [0.0; 37]);
        assert_eq!(state.finish(), (0.0, f32::NEG_INFINITY));
    }
}
