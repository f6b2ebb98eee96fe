//! A schedule of the forward against the CPU executor on a small case.

use super::Args;
use crate::DType;
use crate::check::{Case, OUT, Subject, backwards, close_forward};
use crate::launch::{Probe, Verdict};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let subject = Subject::of(probe, [args.q, args.k, args.v], args.scale)?;
    let case = Case::new(&subject)?;
    let Case { qkv: [q, k, v], out, lse, mask, .. } = &case.to(probe.device())?;
    let mut found = probe.poisoned(out.dtype(), out.shape())?;
    let mut sums = probe.poisoned(DType::F32, lse.shape())?;
    let row_order = backwards(mask.shape()[2])?.to(probe.device())?;
    let small = Args {
        q,
        k,
        v,
        kv_counts: &mask.kv().counts,
        kv_indices: &mask.kv().indices,
        full_kv_counts: mask.full_kv().map(|full| &full.counts),
        full_kv_indices: mask.full_kv().map(|full| &full.indices),
        row_order: Some(&row_order),
        out: &mut found,
        lse: &mut sums,
        scale: args.scale,
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    let found = [found.to_f32_vec()?, sums.to_f32_vec()?];
    let expected = [case.out.to_f32_vec()?, case.lse.to_f32_vec()?];
    let jumps = subject.score_mod.is_some();
    Ok(close_forward([&found[0], &found[1]], [&expected[0], &expected[1]], OUT, jumps))
}
