//! A schedule against the CPU executor on a small map of blocks.

use super::Args;
use crate::DType;
use crate::check::{GRID, Selected, SelectionCase, noise};
use crate::launch::{Probe, Verdict};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let (split, thresholds) = (args.full_keep.is_some(), [args.top_k, args.top_p]);
    let logits = noise(DType::F32, &GRID, 7)?;
    let case = SelectionCase::new(probe, thresholds, split, &logits.to_f32_vec()?)?;
    let mut found = Selected::new(probe)?;
    let Selected { kv, full, keep, full_keep, row_order, finished } = &mut found;
    let small = Args {
        logits: &mut logits.to(probe.device())?,
        classes: split.then_some(&case.classes),
        kv_counts: &mut kv.counts,
        kv_indices: &mut kv.indices,
        full_kv_counts: split.then_some(&mut full.counts),
        full_kv_indices: split.then_some(&mut full.indices),
        keep,
        full_keep: split.then_some(full_keep),
        row_order: Some(row_order),
        finished: Some(finished),
        top_k: args.top_k,
        top_p: args.top_p,
    };
    // SAFETY: a whole case of its own, with counters at 0.
    unsafe { probe.launch(&small)? };
    found.verdict(&case)
}
