//! A schedule against the host on a small map of blocks.

use super::Args;
use crate::check::{GRID, Lists, classes, map, packed, rows_by_length, same_lists};
use crate::launch::{Probe, Verdict};
use crate::mask::{FULL, PARTIAL};
use crate::{DType, Tensor};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let split = args.full_keep.is_some();
    let classes = classes(split);
    let mask = map(&classes, split)?;
    let (Lists(mut q), Lists(mut full)) =
        (Lists::new(probe, GRID[3], GRID[2])?, Lists::new(probe, GRID[3], GRID[2])?);
    let words = [GRID[0], GRID[1], GRID[2], GRID[3].div_ceil(32)];
    let bits = |class: u8| {
        Tensor::from_slice(&packed(classes.iter().map(|&c| c == class)), &words)?.to(probe.device())
    };
    let full_keep = if split { Some(bits(FULL)?) } else { None };
    let mut key_order = probe.poisoned(DType::I32, &[GRID[0], GRID[1], GRID[3]])?;
    let mut finished = Tensor::zeros_on(probe.device(), DType::I32, &GRID[..2])?;
    let small = Args {
        keep: &bits(PARTIAL)?,
        full_keep: full_keep.as_ref(),
        q_counts: &mut q.counts,
        q_indices: &mut q.indices,
        full_q_counts: split.then_some(&mut full.counts),
        full_q_indices: split.then_some(&mut full.indices),
        key_order: Some(&mut key_order),
        finished: Some(&mut finished),
    };
    // SAFETY: a whole case of its own, with counters at 0.
    unsafe { probe.launch(&small)? };
    let order = rows_by_length(&key_order, &q, split.then_some(&full))?;
    let lists = same_lists(&q, mask.q())?;
    let full = mask.full_q().map_or(Ok(Ok(())), |expected| same_lists(&full, expected))?;
    Ok(order.and(lists).and(full))
}
