//! A schedule against the CPU executor on a small map of blocks.

use super::Args;
use crate::check::{GRID, close_scores, noise};
use crate::launch::{Probe, Verdict};
use crate::{DType, cpu};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let [_, heads, rows, columns] = GRID;
    let (d, scale) = (args.q_mean.shape()[3], args.scale);
    let q_mean = noise(DType::F32, &[1, heads, rows, d], 5)?;
    let k_mean = noise(DType::F32, &[1, 1, columns, d], 6)?;
    let (q, k) = (q_mean.to_f32_vec()?, k_mean.to_f32_vec()?);
    let expected: Vec<f32> = q.chunks(rows * d).flat_map(|q| cpu::logits(q, &k, d, scale)).collect();
    let mut logits = probe.poisoned(DType::F32, &GRID)?;
    let (q_mean, k_mean) = (&q_mean.to(probe.device())?, &k_mean.to(probe.device())?);
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&Args { q_mean, k_mean, logits: &mut logits, scale })? };
    Ok(close_scores(&logits.to_f32_vec()?, &expected))
}
