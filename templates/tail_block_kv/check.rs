//! A schedule against sums on the host: short last blocks, a key block that no query block drops, heads that share
//! keys, and query blocks that are no numbers, which may show in the key blocks that they drop alone.

use super::Args;
use crate::check::{TAIL_GRADIENT, TailBackwardCase, compare};
use crate::launch::{Probe, Verdict};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let (d, value_d) = (args.k_mean.shape()[3], args.v_mean.shape()[3]);
    let case = TailBackwardCase::new([d, value_d], args.scale)?.to(probe.device())?;
    let mut dk = probe.poisoned(case.k_mean.dtype(), case.k_mean.shape())?;
    let mut dv = probe.poisoned(case.v_mean.dtype(), case.v_mean.shape())?;
    let small = Args {
        q_mean: &case.q_mean,
        k_mean: &case.k_mean,
        v_mean: &case.v_mean,
        dropped: &case.dropped,
        tail_lse: &case.tail_lse,
        g: &case.g,
        tail_delta: &case.tail_delta,
        dk_mean: &mut dk,
        dv_mean: &mut dv,
        scale: args.scale,
        seq_kv: TailBackwardCase::SEQS[1],
        block_kv: TailBackwardCase::BLOCKS[1],
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    let by_none = TailBackwardCase::dropped_by_none;
    compare(&[
        ("dk_mean", [&dk, &case.dk], TAIL_GRADIENT, &|element| by_none(element / d)),
        ("dv_mean", [&dv, &case.dv], TAIL_GRADIENT, &|element| by_none(element / value_d)),
    ])
}
