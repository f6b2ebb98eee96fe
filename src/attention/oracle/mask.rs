//! The kernels of the selection.

use super::compare::{SUMS, close, close_scores, equal};
use super::{Rule, TOKENS, Verdict, noise, poisoned, verdict};
use crate::device::Device;
use crate::kernels::{order, pool, rank, score, select, transpose};
use crate::launch::Kernel;
use crate::mask::{EMPTY, FULL, PARTIAL};
use crate::{BlockIndex, BlockMask, DType, Error, Tensor, cpu};

/// Blocks that may differ: where a row's mass lands on p within rounding, the order of summation decides.
const AT_THE_THRESHOLD: usize = 2;

/// Rows and columns of the block maps: no multiple of a warp or a tile.
const GRID: [usize; 4] = [1, 2, 37, 75];

pub(in crate::attention) fn check_pool(rule: &Rule, device: &Device, kernel: &Kernel) -> Verdict {
    let d = rule.head_dim.get();
    verdict(|| {
        let (q, k) = (noise(rule.dtype, &[1, 2, TOKENS, d], 4)?, noise(rule.dtype, &[1, 1, TOKENS, d], 5)?);
        let blocks = [rule.blocks.q(), rule.blocks.kv()];
        let expected = (cpu::block_means(&q, blocks[0])?, cpu::block_means(&k, blocks[1])?);
        let mut q_mean = poisoned(device, DType::F32, &[1, 2, TOKENS.div_ceil(blocks[0]), d])?;
        let mut k_mean = poisoned(device, DType::F32, &[1, 1, TOKENS.div_ceil(blocks[1]), d])?;
        let mut finished = poisoned(device, DType::I32, &[1, 2])?;
        let args = pool::Args {
            q: &q.to(device)?,
            k: &k.to(device)?,
            q_mean: &mut q_mean,
            k_mean: &mut k_mean,
            finished: Some(&mut finished),
        };
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { kernel.launch(&args, None)? };
        if finished.to_vec::<i32>()? != [0; 2] {
            return Ok(Err("it leaves the counters as they are".to_owned()));
        }
        let of_q = close(&q_mean.to_f32_vec()?, &expected.0, SUMS);
        Ok(of_q.and(close(&k_mean.to_f32_vec()?, &expected.1, SUMS)))
    })
}

pub(in crate::attention) fn check_score(rule: &Rule, device: &Device, kernel: &Kernel) -> Verdict {
    let [_, heads, rows, columns] = GRID;
    let d = rule.head_dim.get();
    verdict(|| {
        let q_mean = noise(DType::F32, &[1, heads, rows, d], 5)?;
        let k_mean = noise(DType::F32, &[1, 1, columns, d], 6)?;
        let (q, k) = (q_mean.to_f32_vec()?, k_mean.to_f32_vec()?);
        let expected: Vec<f32> = q.chunks(rows * d).flat_map(|q| cpu::logits(q, &k, d, rule.scale)).collect();
        let mut logits = poisoned(device, DType::F32, &GRID)?;
        let (q_mean, k_mean) = (&q_mean.to(device)?, &k_mean.to(device)?);
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe {
            kernel.launch(&score::Args { q_mean, k_mean, logits: &mut logits, scale: rule.scale }, None)?
        };
        Ok(close_scores(&logits.to_f32_vec()?, &expected))
    })
}

/// `split`: whether full blocks go to lists of their own.
pub(in crate::attention) fn check_select(
    rule: &Rule,
    device: &Device,
    split: bool,
    kernel: &Kernel,
) -> Verdict {
    verdict(|| {
        let logits = noise(DType::F32, &GRID, 7)?;
        let case = Case::new(rule, device, split, &logits.to_f32_vec()?)?;
        let mut results = Results::new(device)?;
        let mut row_order = poisoned(device, DType::I32, &GRID[..3])?;
        let mut finished = Tensor::zeros_on(device, DType::I32, &GRID[..2])?;
        let (top_k, top_p) = rule.thresholds();
        let Results { kv, full, keep, full_keep } = &mut results;
        let args = select::Args {
            logits: &mut logits.to(device)?,
            classes: split.then_some(&case.classes),
            kv_counts: &mut kv.counts,
            kv_indices: &mut kv.indices,
            full_kv_counts: split.then_some(&mut full.counts),
            full_kv_indices: split.then_some(&mut full.indices),
            keep,
            full_keep: split.then_some(full_keep),
            row_order: Some(&mut row_order),
            finished: Some(&mut finished),
            top_k,
            top_p,
        };
        // SAFETY: a whole case of its own, with counters at 0.
        unsafe { kernel.launch(&args, None)? };
        if let Err(wrong) =
            by_falling_length(&row_order.to_vec()?, &results.kv, split.then_some(&results.full))?
        {
            return Ok(Err(wrong));
        }
        results.verdict(rule, split, &case)
    })
}

/// `split`: as for [`check_select`].
pub(in crate::attention) fn check_rank(
    rule: &Rule,
    device: &Device,
    split: bool,
    kernel: &Kernel,
) -> Verdict {
    let [_, heads, rows, columns] = GRID;
    let d = rule.head_dim.get();
    verdict(|| {
        let q_mean = noise(DType::F32, &[1, heads, rows, d], 5)?;
        let k_mean = noise(DType::F32, &[1, 1, columns, d], 6)?;
        let (q, k) = (q_mean.to_f32_vec()?, k_mean.to_f32_vec()?);
        let mut logits: Vec<f32> =
            q.chunks(rows * d).flat_map(|q| cpu::logits(q, &k, d, rule.scale)).collect();
        let mut partial_logits = None;
        if split {
            // Those of partial blocks are others than the means'.
            let partial = noise(DType::F32, &GRID, 8)?;
            for ((logit, partial), class) in logits.iter_mut().zip(partial.to_f32_vec()?).zip(classes(split))
            {
                *logit = if class == PARTIAL { partial } else { *logit };
            }
            partial_logits = Some(partial.to(device)?);
        }
        let case = Case::new(rule, device, split, &logits)?;
        let mut results = Results::new(device)?;
        let mut row_order = poisoned(device, DType::I32, &GRID[..3])?;
        let mut finished = Tensor::zeros_on(device, DType::I32, &GRID[..2])?;
        let (top_k, top_p) = rule.thresholds();
        let Results { kv, full, keep, full_keep } = &mut results;
        let args = rank::Args {
            q_mean: &q_mean.to(device)?,
            k_mean: &k_mean.to(device)?,
            classes: split.then_some(&case.classes),
            partial_logits: partial_logits.as_ref(),
            kv_counts: &mut kv.counts,
            kv_indices: &mut kv.indices,
            full_kv_counts: split.then_some(&mut full.counts),
            full_kv_indices: split.then_some(&mut full.indices),
            keep,
            full_keep: split.then_some(full_keep),
            row_order: Some(&mut row_order),
            finished: Some(&mut finished),
            scale: rule.scale,
            top_k,
            top_p,
        };
        // SAFETY: a whole case of its own, with counters at 0.
        unsafe { kernel.launch(&args, None)? };
        if let Err(wrong) =
            by_falling_length(&row_order.to_vec()?, &results.kv, split.then_some(&results.full))?
        {
            return Ok(Err(wrong));
        }
        results.verdict(rule, split, &case)
    })
}

/// What a selection starts from, and what becomes of every block.
struct Case {
    classes: Tensor,
    expected: Vec<u8>,
}

impl Case {
    fn new(rule: &Rule, device: &Device, split: bool, logits: &[f32]) -> Result<Self, Error> {
        let columns = GRID[3];
        // Without classes every block is admissible.
        let classes = if split { classes(split) } else { vec![PARTIAL; GRID.iter().product()] };
        let mut expected = classes.clone();
        for (classes, logits) in expected.chunks_mut(columns).zip(logits.chunks(columns)) {
            let Some(selection) = &rule.selection else { continue };
            let mut keep = vec![false; columns];
            cpu::select_row(logits, |j| classes[j] != EMPTY, selection, &mut keep);
            classes.iter_mut().zip(keep).for_each(|(class, keep)| *class = if keep { *class } else { EMPTY });
        }
        Ok(Case { classes: Tensor::from_slice(&classes, &GRID)?.to(device)?, expected })
    }
}

/// What a selecting kernel writes.
struct Results {
    kv: BlockIndex,
    full: BlockIndex,
    keep: Tensor,
    full_keep: Tensor,
}

impl Results {
    fn new(device: &Device) -> Result<Self, Error> {
        let words = [GRID[0], GRID[1], GRID[2], GRID[3].div_ceil(32)];
        Ok(Results {
            kv: index(device, GRID[2], GRID[3])?,
            full: index(device, GRID[2], GRID[3])?,
            keep: poisoned(device, DType::I32, &words)?,
            full_keep: poisoned(device, DType::I32, &words)?,
        })
    }

    fn verdict(&self, rule: &Rule, split: bool, case: &Case) -> Verdict {
        let partial = unpacked(&self.keep.to_vec()?);
        let full = if split { unpacked(&self.full_keep.to_vec()?) } else { vec![false; partial.len()] };
        let class = |(partial, full)| if full { FULL } else { [EMPTY, PARTIAL][usize::from(partial)] };
        let keep: Vec<u8> = partial.into_iter().zip(full).map(class).collect();
        let apart = keep.iter().zip(&case.expected).filter(|(a, b)| a != b).count();
        if apart > AT_THE_THRESHOLD {
            return Ok(Err(format!("it keeps {apart} other blocks than the CPU executor on a small case")));
        }
        // The lists are those of what it keeps.
        let mask = map(rule, &keep, split)?;
        let lists = same_lists(&self.kv, mask.kv())?;
        let full = mask.full_kv().map_or(Ok(Ok(())), |expected| same_lists(&self.full, expected))?;
        Ok(lists.and(full))
    }
}

/// Whether the rows of each head are all there, those with more blocks first.
fn by_falling_length(order: &[i32], lists: &BlockIndex, full: Option<&BlockIndex>) -> Verdict {
    let mut lengths = lists.counts.to_vec::<i32>()?;
    if let Some(full) = full {
        let full = full.counts.to_vec::<i32>()?;
        lengths.iter_mut().zip(full).for_each(|(length, full)| *length += full);
    }
    Ok(ordered(order, &lengths, lists.counts.shape()[2]))
}

fn ordered(order: &[i32], lengths: &[i32], rows: usize) -> Result<(), String> {
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

/// Two heads' rows, with counts that are none.
pub(in crate::attention) fn check_order(device: &Device, kernel: &Kernel) -> Verdict {
    const LONGEST: i32 = 90;
    verdict(|| {
        let shape = [1, 2, 700];
        let counts: Vec<i32> = (0..1400).map(|i| i * 37 % (LONGEST / 2)).collect();
        let full: Vec<i32> = (0..1400).map(|i| i * 59 % (LONGEST / 2)).collect();
        let lengths: Vec<i32> = counts.iter().zip(&full).map(|(a, b)| a + b).collect();
        // A count that is none is one of 0; past the longest all are alike.
        let (wild, no_more) = ([i32::MIN, -1, i32::MAX], [0, 0, LONGEST]);
        let wild: Vec<i32> = wild.into_iter().cycle().take(1400).collect();
        let no_more: Vec<i32> = no_more.into_iter().cycle().take(1400).collect();
        for (counts, full, lengths) in [(&counts, Some(&full), &lengths), (&wild, None, &no_more)] {
            let counts = Tensor::from_slice(counts, &shape)?.to(device)?;
            let full = full.map(|full| Tensor::from_slice(full, &shape)?.to(device)).transpose()?;
            let mut row_order = poisoned(device, DType::I32, &shape)?;
            let args = order::Args {
                counts: &counts,
                full_counts: full.as_ref(),
                row_order: &mut row_order,
                longest: LONGEST,
            };
            // SAFETY: any counts will do.
            unsafe { kernel.launch(&args, None)? };
            let verdict = ordered(&row_order.to_vec()?, lengths, shape[2]);
            if verdict.is_err() {
                return Ok(verdict);
            }
        }
        Ok(Ok(()))
    })
}

/// A bit a block, 32 blocks of a row in a word.
fn packed(map: impl Iterator<Item = bool>) -> Vec<i32> {
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

/// `split`: as for [`check_select`].
pub(in crate::attention) fn check_transpose(
    rule: &Rule,
    device: &Device,
    split: bool,
    kernel: &Kernel,
) -> Verdict {
    verdict(|| {
        let classes = classes(split);
        let mask = map(rule, &classes, split)?;
        let (mut q, mut full) = (index(device, GRID[3], GRID[2])?, index(device, GRID[3], GRID[2])?);
        let words = [GRID[0], GRID[1], GRID[2], GRID[3].div_ceil(32)];
        let bits =
            |class: u8| Tensor::from_slice(&packed(classes.iter().map(|&c| c == class)), &words)?.to(device);
        let full_keep = if split { Some(bits(FULL)?) } else { None };
        let mut key_order = poisoned(device, DType::I32, &[GRID[0], GRID[1], GRID[3]])?;
        let mut finished = Tensor::zeros_on(device, DType::I32, &GRID[..2])?;
        let args = transpose::Args {
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
        unsafe { kernel.launch(&args, None)? };
        if let Err(wrong) = by_falling_length(&key_order.to_vec()?, &q, split.then_some(&full))? {
            return Ok(Err(wrong));
        }
        let lists = same_lists(&q, mask.q())?;
        let full = mask.full_q().map_or(Ok(Ok(())), |expected| same_lists(&full, expected))?;
        Ok(lists.and(full))
    })
}

/// Classes in no order, with a row and a column of empty ones.
fn classes(split: bool) -> Vec<u8> {
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

fn map(rule: &Rule, classes: &[u8], split: bool) -> Result<BlockMask, Error> {
    let seqs = (GRID[2] * rule.blocks.q(), GRID[3] * rule.blocks.kv());
    BlockMask::from_checked(classes, GRID, rule.blocks, seqs, split)
}

fn index(device: &Device, rows: usize, width: usize) -> Result<BlockIndex, Error> {
    let [batch, heads, ..] = GRID;
    Ok(BlockIndex {
        counts: poisoned(device, DType::I32, &[batch, heads, rows])?,
        indices: poisoned(device, DType::I32, &[batch, heads, rows, width])?,
    })
}

fn same_lists(found: &BlockIndex, expected: &BlockIndex) -> Verdict {
    let counts = equal("counts", &found.counts.to_vec::<i32>()?, &expected.counts.to_vec()?);
    let indices = equal("lists", &found.indices.to_vec::<i32>()?, &expected.indices.to_vec()?);
    Ok(counts.and(indices))
}
