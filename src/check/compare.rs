//! How a candidate's results are compared with the CPU executor's.

use crate::reference::relative_error;

/// How far the outputs may be apart, relative Frobenius: the GPU rounds P to the dtype, the executor does not.
pub(crate) const OUT: f64 = 1e-2;

/// How far each sum of exponentials may be from the executor's: both add up f32, so that they differ by some 1e-5. The backward
/// makes each weight anew as `exp(score - lse)`: this is the relative error of a whole row of them, a tenth of what the gradients
/// may be off.
const LSE_BOUND: f64 = 1e-3;

/// Of a sum of exponentials this large the rounding of the scores themselves shows: the bound grows with it from there.
const LARGE: f64 = 100.0;

/// The share of rows whose sums may be anything where the user's function changes scores: one that jumps can take the other side on
/// a score's last bit.
const STRAY: f64 = 0.01;

/// How far sums of f32 in another order may be.
pub(crate) const SUMS: f64 = 1e-5;

/// ‖found − expected‖ / ‖expected‖ within a bound, over the elements that are numbers; where the executor has none, the kernel may
/// not have one either.
pub(crate) fn close(found: &[f32], expected: &[f32], bound: f64) -> Result<(), String> {
    close_beyond(found, expected, bound, 0.0)
}

/// The same of values that are small only where larger ones cancel, as the gradient of a query with a single key: what they are
/// compared with is at least a root mean square of `floor`.
pub(crate) fn close_beyond(found: &[f32], expected: &[f32], bound: f64, floor: f64) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("it has {} elements, the CPU executor {}", found.len(), expected.len()));
    }
    if let Some(at) = (0..found.len()).find(|&i| found[i].is_finite() && !expected[i].is_finite()) {
        let (found, expected) = (found[at], expected[at]);
        return Err(format!("it is {found} at {at}, where the CPU executor has {expected} on a small case"));
    }
    let numbers = || found.iter().zip(expected).filter(|(_, expected)| expected.is_finite());
    let found: Vec<f32> = numbers().map(|(&found, _)| found).collect();
    let expected: Vec<f64> = numbers().map(|(_, &expected)| f64::from(expected)).collect();
    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
    let least = floor * (expected.len() as f64).sqrt();
    // The error of values that are exactly 0 is 0 or infinite, and relative to the floor then.
    let error = match norm < least {
        true => {
            found.iter().zip(&expected).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum::<f64>().sqrt() / least
        }
        false => relative_error(&found, &expected),
    };
    // Written so that a NaN fails.
    if error <= bound {
        return Ok(());
    }
    Err(format!("it is off by {error:.1e} from the CPU executor on a small case (bound {bound:.0e})"))
}

/// `out` and `lse` of a forward: numbers within their bounds, row by row what the executor says of rows that attend to nothing (0 and
/// -inf), and no number where the user's function has made one impossible. `jumps`: whether a function changes the scores.
pub(crate) fn close_forward(
    found: [&[f32]; 2],
    expected: [&[f32]; 2],
    bound: f64,
    jumps: bool,
) -> Result<(), String> {
    let ([out, lse], [expected_out, expected_lse]) = (found, expected);
    let strays = if jumps { (STRAY * lse.len() as f64) as usize } else { 0 };
    close_lse(lse, expected_lse, strays).map_err(|wrong| format!("lse: {wrong}"))?;
    // The lengths of `out` are compared below.
    let d = out.len() / lse.len().max(1);
    let empty = |row: usize| expected_lse[row] == f32::NEG_INFINITY;
    if let Some(row) = not_zero(out, d, empty) {
        return Err(format!("out: it is not 0 in row {row}, which attends to nothing on a small case"));
    }
    close(out, expected_out, bound).map_err(|wrong| format!("out: {wrong}"))
}

/// Scores within their bound, and -inf exactly where the executor has it.
pub(crate) fn close_scores(found: &[f32], expected: &[f32]) -> Result<(), String> {
    let nothing = |scores: &[f32]| scores.iter().map(|x| *x == f32::NEG_INFINITY).collect::<Vec<_>>();
    close(found, expected, SUMS).and(equal("blocks without a score", &nothing(found), &nothing(expected)))
}

fn close_lse(found: &[f32], expected: &[f32], strays: usize) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("it has {} rows, the CPU executor {}", found.len(), expected.len()));
    }
    let agrees = |(found, expected): (f32, f32)| {
        if expected.is_finite() {
            let (found, expected) = (f64::from(found), f64::from(expected));
            // Written so that a NaN fails.
            (found - expected).abs() <= LSE_BOUND * (expected.abs() / LARGE).max(1.0)
        } else if expected == f32::NEG_INFINITY {
            found == expected
        } else {
            !found.is_finite() && found != f32::NEG_INFINITY
        }
    };
    match (0..found.len()).filter(|&row| !agrees((found[row], expected[row]))).nth(strays) {
        Some(row) => Err(format!(
            "it is {} in row {row}, the CPU executor has {} on a small case (bound {LSE_BOUND:.0e})",
            found[row], expected[row]
        )),
        None => Ok(()),
    }
}

/// The first of the named rows of `d` elements that holds anything but 0.
pub(crate) fn not_zero(found: &[f32], d: usize, named: impl Fn(usize) -> bool) -> Option<usize> {
    let rows = found.chunks(d.max(1)).enumerate();
    rows.filter(|&(row, _)| named(row)).find(|(_, row)| row.iter().any(|&x| x != 0.0)).map(|(row, _)| row)
}

pub(crate) fn equal<T: PartialEq>(what: &str, found: &[T], expected: &[T]) -> Result<(), String> {
    match found.iter().zip(expected).position(|(a, b)| a != b) {
        None if found.len() == expected.len() => Ok(()),
        at => Err(format!(
            "its {what} differ from the CPU executor's on a small case, first at {}",
            at.unwrap_or(found.len().min(expected.len()))
        )),
    }
}
