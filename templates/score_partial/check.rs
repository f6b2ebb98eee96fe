//! A schedule against the CPU executor on a few blocks of the call's mask function.

use super::Args;
use crate::check::{PartialCase, Subject, close_scores};
use crate::launch::{Probe, Verdict};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let Some(mask_mod) = probe.mask_mod() else { return Ok(Ok(())) };
    let mut subject = Subject::of(probe, [args.k; 3], args.scale)?;
    subject.call[0] = args.q_mean.shape()[1];
    subject.call[1] = args.seq_q as usize;
    let case = PartialCase::new(&subject, mask_mod, probe.int("FINE")? > 0)?;
    let mut logits = case.before.to(probe.device())?;
    let small = Args {
        q_mean: &case.q_mean.to(probe.device())?,
        k: &case.k.to(probe.device())?,
        k_mean: &case.k_mean.to(probe.device())?,
        classes: &case.classes.to(probe.device())?,
        logits: &mut logits,
        seq_q: case.seq_q as i32,
        scale: args.scale,
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    Ok(close_scores(&logits.to_f32_vec()?, &case.expected))
}
