//! A schedule against what an order is: two heads' rows, and counts that are none.

use super::Args;
use crate::check::ordered;
use crate::launch::{Probe, Verdict};
use crate::{DType, Tensor};

const LONGEST: i32 = 90;

pub(super) fn check(_: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let shape = [1, 2, 700];
    let counts: Vec<i32> = (0..1400).map(|i| i * 37 % (LONGEST / 2)).collect();
    let full: Vec<i32> = (0..1400).map(|i| i * 59 % (LONGEST / 2)).collect();
    let lengths: Vec<i32> = counts.iter().zip(&full).map(|(a, b)| a + b).collect();
    // A count that is none is one of 0; past the longest all are alike.
    let (wild, no_more) = ([i32::MIN, -1, i32::MAX], [0, 0, LONGEST]);
    let wild: Vec<i32> = wild.into_iter().cycle().take(1400).collect();
    let no_more: Vec<i32> = no_more.into_iter().cycle().take(1400).collect();
    for (counts, full, lengths) in [(&counts, Some(&full), &lengths), (&wild, None, &no_more)] {
        let counts = &Tensor::from_slice(counts, &shape)?.to(probe.device())?;
        let full = full.map(|full| Tensor::from_slice(full, &shape)?.to(probe.device())).transpose()?;
        let mut row_order = probe.poisoned(DType::I32, &shape)?;
        let small = Args { counts, full_counts: full.as_ref(), row_order: &mut row_order, longest: LONGEST };
        // SAFETY: any counts will do.
        unsafe { probe.launch(&small)? };
        let verdict = ordered(&row_order.to_vec()?, lengths, shape[2]);
        if verdict.is_err() {
            return Ok(verdict);
        }
    }
    Ok(Ok(()))
}
