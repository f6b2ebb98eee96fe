//! A schedule against the host: lists with a count past their width, and with numbers that are no block.

use super::Args;
use crate::check::equal;
use crate::launch::{Probe, Verdict};
use crate::{DType, Tensor};

/// Key blocks of a row.
const BLOCKS: usize = 70;

/// Counts and lists.
const ROWS: [(i32, [i32; 4]); 5] =
    [(2, [0, 69, 5, 5]), (9, [31, 32, 63, 64]), (0, [1, 2, 3, 4]), (4, [70, -1, 33, 3]), (-3, [7; 4])];

pub(super) fn check(_: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let counts: Vec<i32> = ROWS.iter().map(|(count, _)| *count).collect();
    let indices: Vec<i32> = ROWS.iter().flat_map(|(_, list)| *list).collect();
    let words = BLOCKS.div_ceil(32);
    let mut expected = vec![0; ROWS.len() * words];
    for (row, (count, list)) in ROWS.iter().enumerate() {
        for &block in &list[..(*count).clamp(0, 4) as usize] {
            if (0..BLOCKS as i32).contains(&block) {
                expected[row * words + block as usize / 32] |= 1 << (block % 32);
            }
        }
    }
    let kv_counts = &Tensor::from_slice(&counts, &[1, 1, ROWS.len()])?.to(probe.device())?;
    let kv_indices = &Tensor::from_slice(&indices, &[1, 1, ROWS.len(), 4])?.to(probe.device())?;
    let mut keep = probe.poisoned(DType::I32, &[1, 1, ROWS.len(), words])?;
    let mut finished = probe.poisoned(DType::I32, &[1, 1])?;
    let small = Args {
        kv_counts,
        kv_indices,
        keep: &mut keep,
        finished: Some(&mut finished),
        kv_blocks: BLOCKS as i32,
    };
    // SAFETY: lists may hold anything.
    unsafe { probe.launch(&small)? };
    if finished.to_vec::<i32>()? != [0] {
        return Ok(Err("it leaves the counter as it is".to_owned()));
    }
    Ok(equal("bits", &keep.to_vec::<i32>()?, &expected))
}
