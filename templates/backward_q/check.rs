//! A schedule of the backward by queries against the CPU executor on a small case, of losses that depend on `lse` and of those that do not.

use super::{Args, TAIL_BLOCK, TAIL_PIECE, TAIL_ROW};
use crate::check::{Case, SUM, Subject, TailCase, compare, noise, of_scores, with_means};
use crate::launch::{Probe, Verdict};
use crate::{DType, Tensor};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let subject = Subject::of(probe, [args.q, args.k, args.v], args.scale)?;
    let (by_block, case) = (probe.int("TAIL")? as i64 == TAIL_BLOCK, Case::new(&subject)?);
    let tail = TailCase::new(probe, &subject, &case, [TAIL_BLOCK, TAIL_ROW, TAIL_PIECE])?;
    let case = if by_block { case } else { tail.whole(case)? };
    let given = tail.to(probe.device())?;
    let [heads, ..] = subject.extents();
    let dq_mean = noise(DType::F32, &[1, heads, case.mask.shape()[2], subject.head_dim], 8)?;
    let on_device = dq_mean.to(probe.device())?;
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
            dq_mean: by_block.then_some(&on_device),
            tail_k: given.k.as_ref(),
            tail_v: given.v.as_ref(),
            tail_weights: given.weights.as_ref(),
            tail_pieces: given.pieces.as_ref(),
            dq: &mut dq,
            delta: &mut delta,
            scale: args.scale,
        };
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { probe.launch(&small)? };
        let (expected, sums) = (case.gradients(&subject, with_d_lse)?, case.delta(with_d_lse)?);
        let [of_means, ..] = tail.gradients(&subject, &case, &sums.to_f32_vec()?, 1)?;
        let expected =
            expected.dq.to_f32_vec()?.iter().zip(of_means).map(|(x, more)| x + more).collect::<Vec<_>>();
        let mut expected = Tensor::from_slice(&expected, case.qkv[0].shape())?;
        if by_block {
            expected = with_means(&expected, &dq_mean, subject.blocks.q())?;
        }
        let verdict = compare(&[
            ("delta", [&delta, &sums], SUM, &|row| empty[row]),
            ("dq", [&dq, &expected], of_scores(args.scale), &|element| !by_block && empty[element / d]),
        ])?;
        if verdict.is_err() {
            return Ok(verdict);
        }
    }
    Ok(Ok(()))
}
