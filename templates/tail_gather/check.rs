//! A schedule against sums on the host: queries that are no whole number of blocks, a block that dropped nothing, and
//! rows that hold no numbers where their block's tail has no share in them.

use super::Args;
use crate::check::{TOKENS, compare, noise};
use crate::launch::{Probe, Verdict};
use crate::{DType, Error, Tensor};

/// Rows of each head without a key, and with a tail that is nothing beside its keys. The block after theirs dropped
/// nothing.
const NO_KEY: usize = 5;
const NO_SHARE: usize = 9;

/// Sums of f32 in another order, of shares that are good to some 20 bits; no sum of the case is as small as the second
/// number.
const BOUND: [f64; 2] = [1e-4, 1e-9];

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let (dtype, d, block) = (args.out.dtype(), args.out.shape()[3], probe.int("BLOCK_Q")?);
    let (rows, blocks) = (2 * TOKENS, TOKENS.div_ceil(block));
    let shape = [1, 2, TOKENS, d];
    let values =
        |dtype, rows: &[usize], seed| -> Result<Vec<f32>, Error> { noise(dtype, rows, seed)?.to_f32_vec() };
    let [mut out, mut d_out] = [values(dtype, &shape, 1)?, values(dtype, &shape, 2)?];
    let mut lse: Vec<f32> = values(DType::F32, &[rows], 3)?.into_iter().map(|x| x + 4.0).collect();
    let mut d_lse = values(DType::F32, &[rows], 4)?;
    let mut tail_lse: Vec<f32> = values(DType::F32, &[2 * blocks], 5)?.into_iter().map(|x| x + 3.0).collect();
    for head in 0..2 {
        for row in [NO_KEY, NO_SHARE].map(|row| head * TOKENS + row) {
            out[row * d..][..d].fill(f32::NAN);
            d_out[row * d..][..d].fill(f32::NAN);
            d_lse[row] = f32::NAN;
        }
        lse[head * TOKENS + NO_KEY] = f32::NEG_INFINITY;
        lse[head * TOKENS + NO_SHARE] = 1e3;
        tail_lse[head * blocks + 1] = f32::NEG_INFINITY;
        out[(head * TOKENS + block) * d] = f32::NAN;
    }

    let of = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape)?.to(probe.device());
    let rounded = |values: &[f32]| match dtype {
        DType::F16 => Tensor::from_slice(&halves(values, half::f16::from_f32), &shape)?.to(probe.device()),
        _ => Tensor::from_slice(&halves(values, half::bf16::from_f32), &shape)?.to(probe.device()),
    };
    let on_device = [rounded(&out)?, rounded(&d_out)?];
    let [lse_there, d_lse_there] = [of(&lse, &shape[..3])?, of(&d_lse, &shape[..3])?];
    let tail_lse_there = of(&tail_lse, &[1, 2, blocks])?;
    for with_d_lse in [true, false] {
        let (mut sums, mut deltas) = (vec![0.0; 2 * blocks * d], vec![0.0; 2 * blocks]);
        for row in 0..rows {
            let at = row / TOKENS * blocks + row % TOKENS / block;
            let alpha = (f64::from(tail_lse[at]) - f64::from(lse[row])).exp();
            if [NO_KEY, NO_SHARE].contains(&(row % TOKENS)) || alpha == 0.0 {
                continue;
            }
            let pairs = out[row * d..][..d].iter().zip(&d_out[row * d..][..d]);
            let mut delta = if with_d_lse { -f64::from(d_lse[row]) } else { 0.0 };
            for ((&x, &dx), sum) in pairs.zip(&mut sums[at * d..][..d]) {
                delta += f64::from(x) * f64::from(dx);
                *sum += alpha * f64::from(dx);
            }
            deltas[at] += alpha * delta;
        }
        let mut g = probe.poisoned(DType::F32, &[1, 2, blocks, d])?;
        let mut tail_delta = probe.poisoned(DType::F32, &[1, 2, blocks])?;
        let small = Args {
            out: &on_device[0],
            d_out: &on_device[1],
            lse: &lse_there,
            d_lse: with_d_lse.then_some(&d_lse_there),
            tail_lse: &tail_lse_there,
            g: &mut g,
            tail_delta: &mut tail_delta,
        };
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { probe.launch(&small)? };
        let expected = |sums: &[f64], shape: &[usize]| {
            Tensor::from_slice(&sums.iter().map(|&x| x as f32).collect::<Vec<_>>(), shape)
        };
        let [sums, deltas] = [expected(&sums, g.shape())?, expected(&deltas, tail_delta.shape())?];
        let verdict = compare(&[
            ("g", [&g, &sums], BOUND, &|element| element / d % blocks == 1),
            ("tail_delta", [&tail_delta, &deltas], BOUND, &|block| block % blocks == 1),
        ])?;
        if verdict.is_err() {
            return Ok(verdict);
        }
    }
    Ok(Ok(()))
}

fn halves<H>(values: &[f32], half: impl Fn(f32) -> H) -> Vec<H> {
    values.iter().map(|&x| half(x)).collect()
}
