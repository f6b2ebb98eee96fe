//! How gradients are compared with the CPU executor's.

use super::compare::{close_beyond, not_zero};
use crate::Tensor;
use crate::launch::Verdict;

/// How far the gradients may be apart, relative Frobenius: the GPU rounds P and dS to the dtype, the executor does not. Of gradients
/// smaller than the second number little is left but what cancels: that of a query with a single key is 0 but for rounding.
pub(crate) const GRADIENT: [f64; 2] = [1e-2, 1e-3];

/// The same of dq and dk, whose terms have the scale as a factor.
pub(crate) fn of_scores(scale: f32) -> [f64; 2] {
    let [bound, floor] = GRADIENT;
    [bound, floor * f64::from(scale.abs()).max(1.0)]
}

/// The same of delta, a sum in f32 in another order; the second number is its usual size, for the terms of a few can cancel.
pub(crate) const SUM: [f64; 2] = [1e-5, 4.0];

/// An output by its name, found and expected; how far they may be apart, and of what size at least; and which elements must be 0.
pub(crate) type Compared<'a> = (&'a str, [&'a Tensor; 2], [f64; 2], &'a dyn Fn(usize) -> bool);

pub(crate) fn compare(outputs: &[Compared<'_>]) -> Verdict {
    for &(name, [found, expected], [bound, floor], is_zero) in outputs {
        let (found, expected) = (found.to_f32_vec()?, expected.to_f32_vec()?);
        if let Some(at) = not_zero(&found, 1, is_zero) {
            return Ok(Err(format!(
                "{name}: it is not 0 at {at}, where nothing is attended to on a small case"
            )));
        }
        if let Err(wrong) = close_beyond(&found, &expected, bound, floor) {
            return Ok(Err(format!("{name}: {wrong}")));
        }
    }
    Ok(Ok(()))
}
