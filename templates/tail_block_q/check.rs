//! A schedule against sums on the host: short last blocks, a query block that drops nothing, and blocks that are no
//! numbers, which may show in the query blocks that drop them alone.

use super::Args;
use crate::check::{TAIL_GRADIENT, TailBackwardCase, compare};
use crate::launch::{Probe, Verdict};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let (d, value_d) = (args.q_mean.shape()[3], args.v_mean.shape()[3]);
    let case = TailBackwardCase::new([d, value_d], args.scale)?.to(probe.device())?;
    let mut dq = probe.poisoned(case.q_mean.dtype(), case.q_mean.shape())?;
    let small = Args {
        q_mean: &case.q_mean,
        k_mean: &case.k_mean,
        v_mean: &case.v_mean,
        dropped: &case.dropped,
        tail_lse: &case.tail_lse,
        g: &case.g,
        tail_delta: &case.tail_delta,
        dq_mean: &mut dq,
        scale: args.scale,
        seq_q: TailBackwardCase::SEQS[0],
        seq_kv: TailBackwardCase::SEQS[1],
        block_q: TailBackwardCase::BLOCKS[0],
        block_kv: TailBackwardCase::BLOCKS[1],
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    compare(&[("dq_mean", [&dq, &case.dq], TAIL_GRADIENT, &|element| {
        TailBackwardCase::drops_nothing(element / d)
    })])
}
