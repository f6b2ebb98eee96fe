//! A schedule of the backward by queries against the CPU executor on a small case, of losses that depend on `lse` and of those that do not.

use super::Args;
use crate::DType;
use crate::check::{Case, SUM, Subject, compare, of_scores};
use crate::launch::{Probe, Verdict};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let subject = Subject::of(probe, [args.q, args.k, args.v], args.scale)?;
    let case = Case::new(&subject)?;
    let Case { qkv: [q, k, v], out, lse, d_out, d_lse, mask } = &case.to(probe.device())?;
    let (empty, d) = (case.without_keys()?, subject.head_dim);
    for with_d_lse in [true, false] {
        let mut dq = probe.poisoned(q.dtype(), q.shape())?;
        let mut delta = probe.poisoned(DType::F32, lse.shape())?;
        let small = Args {
            q,
            k,
            v,
            out,
            d_out,
            lse,
            d_lse: with_d_lse.then_some(d_lse),
            kv_counts: &mask.kv().counts,
            kv_indices: &mask.kv().indices,
            full_kv_counts: mask.full_kv().map(|full| &full.counts),
            full_kv_indices: mask.full_kv().map(|full| &full.indices),
            dq: &mut dq,
            delta: &mut delta,
            scale: args.scale,
        };
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { probe.launch(&small)? };
        let (expected, sums) = (case.gradients(&subject, with_d_lse)?, case.delta(with_d_lse)?);
        let verdict = compare(&[
            ("delta", [&delta, &sums], SUM, &|row| empty[row]),
            ("dq", [&dq, &expected.dq], of_scores(args.scale), &|element| empty[element / d]),
        ])?;
        if verdict.is_err() {
            return Ok(verdict);
        }
    }
    Ok(Ok(()))
}
