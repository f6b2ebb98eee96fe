//! Maps of blocks, and what kernels select of them.

use super::compare::equal;
use crate::launch::{Probe, Verdict};
use crate::mask::{EMPTY, FULL, PARTIAL};
use crate::{BlockIndex, BlockMask, BlockSize, DType, Error, Selection, Tensor, cpu, top_k, top_p};

/// Blocks that may differ: where a row's mass lands on p within rounding, the order of summation decides.
const AT_THE_THRESHOLD: usize = 2;

/// Rows and columns of the block maps: no multiple of a warp or a tile.
pub(crate) const GRID: [usize; 4] = [1, 2, 37, 75];

/// What a selection starts from, and what becomes of every block.
pub(crate) struct SelectionCase {
    pub(crate) classes: Tensor,
    expected: Vec<u8>,
    split: bool,
}

impl SelectionCase {
    /// `thresholds`: of k and p, 0 where one is not given. `split`: whether full blocks go to lists of their own.
    pub(crate) fn new(
        probe: &Probe<'_>,
        thresholds: [f32; 2],
        split: bool,
        logits: &[f32],
    ) -> Result<Self, Error> {
        let (columns, selection) = (GRID[3], selection(thresholds));
        // Without classes every block is admissible.
        let classes = if split { classes(split) } else { vec![PARTIAL; GRID.iter().product()] };
        let mut expected = classes.clone();
        for (classes, logits) in expected.chunks_mut(columns).zip(logits.chunks(columns)) {
            let mut keep = vec![false; columns];
            cpu::select_row(logits, |j| classes[j] != EMPTY, &selection, &mut keep);
            classes.iter_mut().zip(keep).for_each(|(class, keep)| *class = if keep { *class } else { EMPTY });
        }
        Ok(SelectionCase {
            classes: Tensor::from_slice(&classes, &GRID)?.to(probe.device())?,
            expected,
            split,
        })
    }
}

/// The rule that these are the kernels' numbers of.
fn selection([k, p]: [f32; 2]) -> Selection {
    match (k > 0.0, p > 0.0) {
        (true, true) => top_k(k.into()) | top_p(p.into()),
        (true, false) => top_k(k.into()),
        _ => top_p(p.into()),
    }
}

/// Lists by row, written by a kernel.
pub(crate) struct Lists(pub(crate) BlockIndex);

impl Lists {
    /// Of so many rows and columns of the maps, not written yet.
    pub(crate) fn new(probe: &Probe<'_>, rows: usize, width: usize) -> Result<Self, Error> {
        let [batch, heads, ..] = GRID;
        Ok(Lists(BlockIndex {
            counts: probe.poisoned(DType::I32, &[batch, heads, rows])?,
            indices: probe.poisoned(DType::I32, &[batch, heads, rows, width])?,
        }))
    }
}

/// What a selecting kernel writes.
pub(crate) struct Selected {
    pub(crate) kv: BlockIndex,
    pub(crate) full: BlockIndex,
    pub(crate) keep: Tensor,
    pub(crate) full_keep: Tensor,
    pub(crate) row_order: Tensor,
    pub(crate) finished: Tensor,
}

impl Selected {
    /// Not written yet.
    pub(crate) fn new(probe: &Probe<'_>) -> Result<Self, Error> {
        let words = [GRID[0], GRID[1], GRID[2], GRID[3].div_ceil(32)];
        Ok(Selected {
            kv: Lists::new(probe, GRID[2], GRID[3])?.0,
            full: Lists::new(probe, GRID[2], GRID[3])?.0,
            keep: probe.poisoned(DType::I32, &words)?,
            full_keep: probe.poisoned(DType::I32, &words)?,
            row_order: probe.poisoned(DType::I32, &GRID[..3])?,
            finished: Tensor::zeros_on(probe.device(), DType::I32, &GRID[..2])?,
        })
    }

    /// Whether it is what the executor selects, in lists, bits and the order of the rows.
    pub(crate) fn verdict(&self, case: &SelectionCase) -> Verdict {
        let split = case.split;
        let order = rows_by_length(&self.row_order, &self.kv, split.then_some(&self.full))?;
        if order.is_err() {
            return Ok(order);
        }
        let partial = unpacked(&self.keep.to_vec()?);
        let full = if split { unpacked(&self.full_keep.to_vec()?) } else { vec![false; partial.len()] };
        let class = |(partial, full)| if full { FULL } else { [EMPTY, PARTIAL][usize::from(partial)] };
        let keep: Vec<u8> = partial.into_iter().zip(full).map(class).collect();
        let apart = keep.iter().zip(&case.expected).filter(|(a, b)| a != b).count();
        if apart > AT_THE_THRESHOLD {
            return Ok(Err(format!("it keeps {apart} other blocks than the CPU executor on a small case")));
        }
        // The lists are those of what it keeps.
        let mask = map(&keep, split)?;
        let lists = same_lists(&self.kv, mask.kv())?;
        let full = mask.full_kv().map_or(Ok(Ok(())), |expected| same_lists(&self.full, expected))?;
        Ok(lists.and(full))
    }
}

/// Whether the rows of each head are all there, those with more blocks first.
pub(crate) fn rows_by_length(order: &Tensor, lists: &BlockIndex, full: Option<&BlockIndex>) -> Verdict {
    let mut lengths = lists.counts.to_vec::<i32>()?;
    if let Some(full) = full {
        let full = full.counts.to_vec::<i32>()?;
        lengths.iter_mut().zip(full).for_each(|(length, full)| *length += full);
    }
    Ok(ordered(&order.to_vec()?, &lengths, lists.counts.shape()[2]))
}

/// The same of lengths in hand.
pub(crate) fn ordered(order: &[i32], lengths: &[i32], rows: usize) -> Result<(), String> {
    for (order, lengths) in order.chunks(rows).zip(lengths.chunks(rows)) {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..rows as i32) {
            return Err("its order of the rows is no order on a small case".to_owned());
        }
        if !order.is_sorted_by_key(|&row| std::cmp::Reverse(lengths[row as usize])) {
            return Err("its order of the rows is not by falling length on a small case".to_owned());
        }
    }
    Ok(())
}

/// A bit a block, 32 blocks of a row in a word.
pub(crate) fn packed(map: impl Iterator<Item = bool>) -> Vec<i32> {
    let map: Vec<bool> = map.collect();
    let word = |blocks: &[bool]| {
        blocks.iter().enumerate().fold(0, |word, (bit, &kept)| word | i32::from(kept) << bit)
    };
    map.chunks(GRID[3]).flat_map(|row| row.chunks(32).map(word)).collect()
}

fn unpacked(words: &[i32]) -> Vec<bool> {
    let columns = GRID[3];
    let row = |words: &[i32]| -> Vec<bool> {
        (0..columns).map(|column| words[column / 32] >> (column % 32) & 1 == 1).collect()
    };
    words.chunks(columns.div_ceil(32)).flat_map(row).collect()
}

/// Classes in no order, with a row and a column of empty ones.
pub(crate) fn classes(split: bool) -> Vec<u8> {
    let [_, heads, rows, columns] = GRID;
    let class = |i: usize| {
        let (row, column) = (i / columns % rows, i % columns);
        match (i.wrapping_mul(0x9E37_79B1) >> 7) % 3 {
            _ if row == 3 || column == 5 => EMPTY,
            0 => EMPTY,
            1 if split => FULL,
            _ => PARTIAL,
        }
    };
    (0..heads * rows * columns).map(class).collect()
}

/// The mask of a map of classes.
pub(crate) fn map(classes: &[u8], split: bool) -> Result<BlockMask, Error> {
    let blocks = BlockSize::default();
    BlockMask::from_checked(classes, GRID, blocks, (GRID[2] * blocks.q(), GRID[3] * blocks.kv()), split)
}

/// Whether lists are the executor's.
pub(crate) fn same_lists(found: &BlockIndex, expected: &BlockIndex) -> Verdict {
    let counts = equal("counts", &found.counts.to_vec::<i32>()?, &expected.counts.to_vec()?);
    let indices = equal("lists", &found.indices.to_vec::<i32>()?, &expected.indices.to_vec()?);
    Ok(counts.and(indices))
}
