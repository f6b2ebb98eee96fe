//! A schedule against the CPU executor: tokens that are no whole number of blocks.

use super::Args;
use crate::check::{SUMS, TOKENS, close, noise};
use crate::launch::{Probe, Verdict};
use crate::{DType, cpu};

/// A mean that lies between two numbers of a half type may go to either.
const ROUNDED: f64 = 1e-2;

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let (dtype, d) = (args.q.dtype(), args.q.shape()[3]);
    let (q, k) = (noise(dtype, &[1, 2, TOKENS, d], 4)?, noise(dtype, &[1, 1, TOKENS, d], 5)?);
    let blocks = [probe.int("BLOCK_Q")?, probe.int("BLOCK_KV")?];
    let expected = (cpu::block_means(&q, blocks[0])?, cpu::block_means(&k, blocks[1])?);
    let mut q_mean = probe.poisoned(DType::F32, &[1, 2, TOKENS.div_ceil(blocks[0]), d])?;
    let mut k_mean = probe.poisoned(DType::F32, &[1, 1, TOKENS.div_ceil(blocks[1]), d])?;
    let fine = probe.int("FINE")?;
    let mut k_fine = match fine {
        0 => None,
        _ => Some(probe.poisoned(dtype, &[1, 1, TOKENS.div_ceil(fine), d])?),
    };
    let mut finished = probe.poisoned(DType::I32, &[1, 2])?;
    let small = Args {
        q: &q.to(probe.device())?,
        k: &k.to(probe.device())?,
        q_mean: &mut q_mean,
        k_mean: &mut k_mean,
        finished: Some(&mut finished),
        k_fine: k_fine.as_mut(),
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    if finished.to_vec::<i32>()? != [0; 2] {
        return Ok(Err("it leaves the counters as they are".to_owned()));
    }
    if let Some(k_fine) = k_fine {
        // The sums of a few are exact, or rounded once.
        let same = close(&k_fine.to_f32_vec()?, &cpu::fine_means(&k)?, ROUNDED);
        if let Err(wrong) = same {
            return Ok(Err(format!("k_fine: {wrong}")));
        }
    }
    let of_q = close(&q_mean.to_f32_vec()?, &expected.0, SUMS);
    Ok(of_q.and(close(&k_mean.to_f32_vec()?, &expected.1, SUMS)))
}
