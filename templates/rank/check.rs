//! A schedule against the CPU executor on a small map of blocks.

use super::Args;
use crate::check::{GRID, Selected, SelectionCase, classes, noise};
use crate::launch::{Probe, Verdict};
use crate::mask::PARTIAL;
use crate::{DType, cpu};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let [_, heads, rows, columns] = GRID;
    let (split, thresholds) = (args.full_keep.is_some(), [args.top_k, args.top_p]);
    let (d, scale) = (args.q_mean.shape()[3], args.scale);
    let q_mean = noise(DType::F32, &[1, heads, rows, d], 5)?;
    let k_mean = noise(DType::F32, &[1, 1, columns, d], 6)?;
    let (q, k) = (q_mean.to_f32_vec()?, k_mean.to_f32_vec()?);
    let mut logits: Vec<f32> = q.chunks(rows * d).flat_map(|q| cpu::logits(q, &k, d, scale)).collect();
    let mut partial_logits = None;
    if split {
        // Those of partial blocks are others than the means'.
        let partial = noise(DType::F32, &GRID, 8)?;
        for ((logit, partial), class) in logits.iter_mut().zip(partial.to_f32_vec()?).zip(classes(split)) {
            *logit = if class == PARTIAL { partial } else { *logit };
        }
        partial_logits = Some(partial.to(probe.device())?);
    }
    let case = SelectionCase::new(probe, thresholds, split, &logits)?;
    let mut found = Selected::new(probe)?;
    let Selected { kv, full, keep, full_keep, row_order, finished } = &mut found;
    let small = Args {
        q_mean: &q_mean.to(probe.device())?,
        k_mean: &k_mean.to(probe.device())?,
        classes: split.then_some(&case.classes),
        partial_logits: partial_logits.as_ref(),
        kv_counts: &mut kv.counts,
        kv_indices: &mut kv.indices,
        full_kv_counts: split.then_some(&mut full.counts),
        full_kv_indices: split.then_some(&mut full.indices),
        keep,
        full_keep: split.then_some(full_keep),
        row_order: Some(row_order),
        finished: Some(finished),
        scale,
        top_k: args.top_k,
        top_p: args.top_p,
    };
    // SAFETY: a whole case of its own, with counters at 0.
    unsafe { probe.launch(&small)? };
    found.verdict(&case)
}
