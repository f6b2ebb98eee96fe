//! Every kernel of the chain against the CPU executor on a small case, before a schedule may win.

mod backward;
mod forward;
mod mask;

pub(super) use backward::{check_backward_kv, check_backward_q, check_mark};
pub(super) use forward::check_forward;
pub(super) use mask::{
    check_classify, check_order, check_pool, check_rank, check_score, check_select, check_transpose,
};

use super::Rule;
use crate::reference::relative_error;
use crate::{DType, Error, Tensor};

/// Tokens of the case: whole blocks and a short one, for every block size.
const TOKENS: usize = 300;

/// What a case says: an error of the user's own function says nothing about the kernel.
fn verdict(case: impl FnOnce() -> Result<Result<(), String>, Error>) -> Result<(), String> {
    match case() {
        Ok(verdict) => verdict,
        Err(Error::DeviceFunction { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// ‖found − expected‖ / ‖expected‖ within a bound; a NaN fails.
fn close(found: &[f32], expected: &[f32], bound: f64) -> Result<(), String> {
    let expected: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
    let error = relative_error(found, &expected);
    if error <= bound {
        return Ok(());
    }
    Err(format!("it is off by {error:.1e} from the CPU executor on a small case (bound {bound:.0e})"))
}

fn equal<T: PartialEq>(what: &str, found: &[T], expected: &[T]) -> Result<(), String> {
    match found.iter().zip(expected).position(|(a, b)| a != b) {
        None if found.len() == expected.len() => Ok(()),
        at => Err(format!(
            "its {what} differ from the CPU executor's on a small case, first at {}",
            at.unwrap_or(found.len().min(expected.len()))
        )),
    }
}

/// Evenly spread over -2 to 2.
fn noise(dtype: DType, shape: &[usize], seed: u32) -> Result<Tensor, Error> {
    let values = (0..shape.iter().product::<usize>()).map(|i| {
        let mut bits = (i as u32 ^ seed.rotate_left(16)).wrapping_mul(0x9E37_79B1);
        bits = (bits ^ (bits >> 15)).wrapping_mul(0x85EB_CA77);
        (bits >> 8) as f32 / (1 << 22) as f32 - 2.0
    });
    match dtype {
        DType::F16 => Tensor::from_slice(&values.map(half::f16::from_f32).collect::<Vec<_>>(), shape),
        DType::F32 => Tensor::from_slice(&values.collect::<Vec<_>>(), shape),
        _ => Tensor::from_slice(&values.map(half::bf16::from_f32).collect::<Vec<_>>(), shape),
    }
}
