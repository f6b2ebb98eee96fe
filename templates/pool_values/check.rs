//! A schedule against the CPU executor: tokens that are no whole number of blocks.

use super::Args;
use crate::check::{SUMS, TOKENS, close, noise};
use crate::launch::{Probe, Verdict};
use crate::{DType, cpu};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let (d, block) = (args.v.shape()[3], probe.int("BLOCK_KV")?);
    let v = noise(args.v.dtype(), &[1, 2, TOKENS, d], 6)?;
    let expected = cpu::block_means(&v, block)?;
    let mut v_mean = probe.poisoned(DType::F32, &[1, 2, TOKENS.div_ceil(block), d])?;
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&Args { v: &v.to(probe.device())?, v_mean: &mut v_mean })? };
    Ok(close(&v_mean.to_f32_vec()?, &expected, SUMS))
}
