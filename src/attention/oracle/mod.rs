//! Every kernel of the chain against the CPU executor on a small case, before a schedule may win.

mod backward;
mod case;
mod compare;
mod forward;
mod mask;
mod partial;
#[cfg(test)]
mod tests;

pub(super) use backward::{check_backward_kv, check_backward_q, check_mark};
pub(super) use forward::check_forward;
pub(super) use mask::{check_order, check_pool, check_rank, check_score, check_select, check_transpose};
pub(super) use partial::{check_classify, check_score_partial};

use super::{Rule, Sizes};
use crate::device::Device;
use crate::{DType, Error, Tensor};
use case::Case;

/// Tokens of the case: whole blocks and a short one, for every block size.
const TOKENS: usize = 300;

/// What a check says: that a kernel computes what the executor does, or what is wrong with it; an error where there is no saying,
/// whichever the candidate.
pub(crate) type Verdict = Result<Result<(), String>, Error>;

/// A panic of the user's own function is the user's to know, and a call that is to end says nothing of any candidate; any other error
/// is the candidate's.
fn verdict(case: impl FnOnce() -> Verdict) -> Verdict {
    match case() {
        Err(error @ (Error::DeviceFunction { .. } | Error::Interrupted)) => Err(error),
        Err(error) => Ok(Err(error.to_string())),
        verdict => verdict,
    }
}

/// Memory for an output on the device: what is not written must not look right.
fn poisoned(device: &Device, dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
    let mut tensor = Tensor::uninit(device, dtype, shape)?;
    tensor.fill_bytes(0xFF)?;
    Ok(tensor)
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
