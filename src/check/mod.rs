//! What the `check.rs` of the shipped kernels have in common: small cases, and comparisons with the CPU executor.

mod case;
mod compare;
mod gradient;
mod partial;
mod selection;
mod tail;
mod tail_backward;
#[cfg(test)]
mod tests;

pub(crate) use case::{Case, Subject, backwards};
pub(crate) use compare::{OUT, SUMS, close, close_forward, close_scores, equal};
pub(crate) use gradient::{GRADIENT, SUM, compare, of_scores};
pub(crate) use partial::PartialCase;
pub(crate) use selection::{
    GRID, Lists, Selected, SelectionCase, classes, map, ordered, packed, rows_by_length, same_lists,
};
pub(crate) use tail::{TailCase, with_means};
pub(crate) use tail_backward::{TAIL_GRADIENT, TailBackwardCase};

use crate::{DType, Error, Tensor};

/// Tokens of the case: whole blocks and a short one, for every block size.
pub(crate) const TOKENS: usize = 300;

/// Evenly spread over -2 to 2.
pub(crate) fn noise(dtype: DType, shape: &[usize], seed: u32) -> Result<Tensor, Error> {
    filled(dtype, shape, |i| {
        let mut bits = (i as u32 ^ seed.rotate_left(16)).wrapping_mul(0x9E37_79B1);
        bits = (bits ^ (bits >> 15)).wrapping_mul(0x85EB_CA77);
        (bits >> 8) as f32 / (1 << 22) as f32 - 2.0
    })
}

/// 1, 2, … up to what every half type holds, over and over.
pub(crate) fn whole_numbers(dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
    filled(dtype, shape, |i| (i % 251 + 1) as f32)
}

fn filled(dtype: DType, shape: &[usize], value: impl Fn(usize) -> f32) -> Result<Tensor, Error> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(value).collect();
    of_dtype(dtype, &values, shape)
}

/// Values, rounded to a floating type.
pub(crate) fn of_dtype(dtype: DType, values: &[f32], shape: &[usize]) -> Result<Tensor, Error> {
    let values = values.iter().copied();
    match dtype {
        DType::F16 => Tensor::from_slice(&values.map(half::f16::from_f32).collect::<Vec<_>>(), shape),
        DType::F32 => Tensor::from_slice(&values.collect::<Vec<_>>(), shape),
        _ => Tensor::from_slice(&values.map(half::bf16::from_f32).collect::<Vec<_>>(), shape),
    }
}
