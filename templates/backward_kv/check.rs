//! A schedule of the backward by keys against the CPU executor on a small case.

use super::{Args, TAIL_BLOCK, TAIL_PIECE, TAIL_ROW};
use crate::check::{Case, GRADIENT, Subject, TailCase, backwards, compare, noise, of_scores, with_means};
use crate::launch::{Probe, Verdict};
use crate::{DType, Tensor};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let subject = Subject::of(probe, [args.q, args.k, args.v], args.scale)?;
    let (tail, case) = (probe.int("TAIL")? as i64, Case::new(&subject)?);
    if tail == TAIL_ROW {
        return of_means(args, probe, &subject, case);
    }
    let by_block = tail == TAIL_BLOCK;
    let mean = |d, seed| noise(DType::F32, &[1, 1, case.mask.shape()[3], d], seed);
    let (dk_mean, dv_mean) = (mean(subject.head_dim, 8)?, mean(subject.value_dim, 9)?);
    let on_device = [dk_mean.to(probe.device())?, dv_mean.to(probe.device())?];
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
        dk_mean: by_block.then_some(&on_device[0]),
        dv_mean: by_block.then_some(&on_device[1]),
        tail_weights: None,
        tail_pieces: None,
        dk: &mut dk,
        dv: &mut dv,
        scale: args.scale,
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    let unlisted = case.without_queries()?;
    let of_rows = |d: usize| {
        let (unlisted, block) = (&unlisted, subject.blocks.kv());
        move |element: usize| !by_block && unlisted[element / d / block]
    };
    let mut of_keys = [expected.dk, expected.dv];
    if by_block {
        let block = subject.blocks.kv();
        of_keys = [with_means(&of_keys[0], &dk_mean, block)?, with_means(&of_keys[1], &dv_mean, block)?];
    }
    compare(&[
        ("dk", [&dk, &of_keys[0]], of_scores(args.scale), &of_rows(subject.head_dim)),
        ("dv", [&dv, &of_keys[1]], GRADIENT, &of_rows(subject.value_dim)),
    ])
}

/// The gradients of means, in two parts of the query blocks.
fn of_means(args: &Args<'_>, probe: &Probe<'_>, subject: &Subject<'_>, case: Case) -> Verdict {
    const PARTS: usize = 2;
    let tail = TailCase::new(probe, subject, &case, [TAIL_BLOCK, TAIL_ROW, TAIL_PIECE])?;
    let case = tail.whole(case)?;
    let delta = case.delta(true)?;
    let [_, dk, dv] = tail.gradients(subject, &case, &delta.to_f32_vec()?, PARTS)?;
    let given = tail.to(probe.device())?;
    let Case { qkv: [q, ..], lse, d_out, .. } = &case.to(probe.device())?;
    let (Some(k), Some(v), Some(weights)) = (&given.k, &given.v, &given.weights) else {
        unreachable!("a row tail has means");
    };
    let rows = PARTS * k.shape()[2];
    let blocks = rows / subject.blocks.kv();
    let counts = Tensor::uninit(probe.device(), DType::I32, &[1, 1, blocks])?;
    let indices = Tensor::uninit(probe.device(), DType::I32, &[1, 1, blocks, 1])?;
    let mut found = [
        probe.poisoned(subject.dtype, &[1, 1, rows, subject.head_dim])?,
        probe.poisoned(subject.dtype, &[1, 1, rows, subject.value_dim])?,
    ];
    let [found_dk, found_dv] = &mut found;
    let small = Args {
        q,
        k,
        v,
        d_out,
        lse,
        delta: &delta.to(probe.device())?,
        q_counts: &counts,
        q_indices: &indices,
        full_q_counts: None,
        full_q_indices: None,
        key_order: None,
        dk_mean: None,
        dv_mean: None,
        tail_weights: Some(weights),
        tail_pieces: given.pieces.as_ref(),
        dk: found_dk,
        dv: found_dv,
        scale: args.scale,
    };
    // SAFETY: a whole case of its own, which is read on the host; the lists are not read.
    unsafe { probe.launch(&small)? };
    let [found_dk, found_dv] = &found;
    let dk = Tensor::from_slice(&dk, found_dk.shape())?;
    let dv = Tensor::from_slice(&dv, found_dv.shape())?;
    compare(&[
        ("dk", [found_dk, &dk], of_scores(args.scale), &|_| false),
        ("dv", [found_dv, &dv], GRADIENT, &|_| false),
    ])
}
