//! A schedule against the CPU executor: a few query blocks, and keys that are no whole number of blocks or of runs.

use super::Args;
use crate::check::{GRID, TOKENS, close_scores, noise, of_dtype};
use crate::launch::{Probe, Verdict};
use crate::{DType, cpu};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let [_, heads, rows, _] = GRID;
    let (dtype, d, scale) = (args.k_fine.dtype(), args.q_mean.shape()[3], args.scale);
    let block = probe.int("BLOCK_KV")?;
    let q_mean = noise(DType::F32, &[1, heads, rows, d], 5)?;
    let fine = cpu::fine_means(&noise(dtype, &[1, 1, TOKENS, d], 6)?)?;
    let q = q_mean.to_f32_vec()?;
    let expected: Vec<f32> =
        q.chunks(rows * d).flat_map(|q| cpu::logits_of_keys(q, &fine, d, block, scale, dtype)).collect();
    let k_fine = of_dtype(dtype, &fine, &[1, 1, fine.len() / d, d])?;
    let mut logits = probe.poisoned(DType::F32, &[1, heads, rows, TOKENS.div_ceil(block)])?;
    let (q_mean, k_fine) = (&q_mean.to(probe.device())?, &k_fine.to(probe.device())?);
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&Args { q_mean, k_fine, logits: &mut logits, scale })? };
    Ok(close_scores(&logits.to_f32_vec()?, &expected))
}
