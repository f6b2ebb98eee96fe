//! A schedule of the backward by keys against the CPU executor on a small case.

use super::Args;
use crate::check::{Case, GRADIENT, Subject, backwards, compare, of_scores};
use crate::launch::{Probe, Verdict};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let subject = Subject::of(probe, [args.q, args.k, args.v], args.scale)?;
    let case = Case::new(&subject)?;
    let expected = case.gradients(&subject, true)?;
    let delta = &case.delta(true)?.to(probe.device())?;
    let Case { qkv: [q, k, v], lse, d_out, mask, .. } = &case.to(probe.device())?;
    let mut dk = probe.poisoned(k.dtype(), k.shape())?;
    let mut dv = probe.poisoned(v.dtype(), v.shape())?;
    let key_order = backwards(mask.shape()[3])?.to(probe.device())?;
    let small = Args {
        q,
        k,
        v,
        d_out,
        lse,
        delta,
        q_counts: &mask.q().counts,
        q_indices: &mask.q().indices,
        full_q_counts: mask.full_q().map(|full| &full.counts),
        full_q_indices: mask.full_q().map(|full| &full.indices),
        key_order: Some(&key_order),
        dk: &mut dk,
        dv: &mut dv,
        scale: args.scale,
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    let unlisted = case.without_queries()?;
    let of_rows = |d: usize| {
        let (unlisted, block) = (&unlisted, subject.blocks.kv());
        move |element: usize| unlisted[element / d / block]
    };
    compare(&[
        ("dk", [&dk, &expected.dk], of_scores(args.scale), &of_rows(subject.head_dim)),
        ("dv", [&dv, &expected.dv], GRADIENT, &of_rows(subject.value_dim)),
    ])
}
