//! A schedule of the forward against the CPU executor on a small case.

use super::{Args, TAIL_BLOCK, TAIL_PIECE, TAIL_ROW};
use crate::DType;
use crate::check::{Case, OUT, Subject, TailCase, backwards, close_forward};
use crate::launch::{Probe, Verdict};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let subject = Subject::of(probe, [args.q, args.k, args.v], args.scale)?;
    let case = Case::new(&subject)?;
    let tail =
        TailCase::new(probe, &subject, &case, [TAIL_BLOCK, TAIL_ROW, TAIL_PIECE])?.to(probe.device())?;
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
        tail_out: tail.out.as_ref(),
        tail_lse: tail.lse.as_ref(),
        tail_k: tail.k.as_ref(),
        tail_v: tail.v.as_ref(),
        tail_weights: tail.weights.as_ref(),
        tail_pieces: tail.pieces.as_ref(),
        out: &mut found,
        lse: &mut sums,
        scale: args.scale,
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    let found = [found.to_f32_vec()?, sums.to_f32_vec()?];
    let [expected_out, expected_lse] = &tail.expected;
    let jumps = subject.score_mod.is_some();
    Ok(close_forward([&found[0], &found[1]], [expected_out, expected_lse], OUT, jumps))
}
