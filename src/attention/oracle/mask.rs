//! The kernels of the selection.

use super::{Rule, TOKENS, close, equal, noise, verdict};
use crate::device::Device;
use crate::kernels::{classify, pool, score, select, transpose};
use crate::launch::{FunctionArgs, Kernel};
use crate::mask::{EMPTY, FULL, PARTIAL};
use crate::{BlockIndex, BlockMask, DType, Error, Tensor, cpu};

/// Sums of f32 in another order.
const BOUND: f64 = 1e-5;

/// Blocks that may differ: where a row's mass lands on p within rounding, the order of summation decides.
const AT_THE_THRESHOLD: usize = 2;

/// Rows and columns of the block maps: no multiple of a warp or a tile.
const GRID: [usize; 4] = [1, 2, 37, 75];

pub(in crate::attention) fn check_pool(
    rule: &Rule,
    device: &Device,
    block: usize,
    kernel: &Kernel,
) -> Result<(), String> {
    let d = rule.head_dim.get();
    verdict(|| {
        let x = noise(rule.dtype, &[1, 2, TOKENS, d], 4)?;
        let expected = cpu::block_means(&x, block)?;
        let mut mean = poisoned(device, DType::F32, &[1, 2, TOKENS.div_ceil(block), d])?;
        kernel.launch(&pool::Args { x: &x.to(device)?, mean: &mut mean }, None)?;
        Ok(close(&mean.to_f32_vec()?, &expected, BOUND))
    })
}

pub(in crate::attention) fn check_score(rule: &Rule, device: &Device, kernel: &Kernel) -> Result<(), String> {
    let [_, heads, rows, columns] = GRID;
    let d = rule.head_dim.get();
    verdict(|| {
        let q_mean = noise(DType::F32, &[1, heads, rows, d], 5)?;
        let k_mean = noise(DType::F32, &[1, 1, columns, d], 6)?;
        let (q, k) = (q_mean.to_f32_vec()?, k_mean.to_f32_vec()?);
        let expected: Vec<f32> = q.chunks(rows * d).flat_map(|q| cpu::logits(q, &k, d, rule.scale)).collect();
        let mut logits = poisoned(device, DType::F32, &GRID)?;
        let (q_mean, k_mean) = (&q_mean.to(device)?, &k_mean.to(device)?);
        kernel.launch(&score::Args { q_mean, k_mean, logits: &mut logits, scale: rule.scale }, None)?;
        Ok(close(&logits.to_f32_vec()?, &expected, BOUND))
    })
}

pub(in crate::attention) fn check_classify(
    rule: &Rule,
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
) -> Result<(), String> {
    let Some(mask_mod) = rule.mask_mod.as_deref() else { return Ok(()) };
    let grid = [1, 1, TOKENS.div_ceil(rule.blocks.q()), TOKENS.div_ceil(rule.blocks.kv())];
    verdict(|| {
        let expected = crate::mask::classify(mask_mod, grid, rule.blocks, (TOKENS, TOKENS))?;
        let mut classes = poisoned(device, DType::U8, &grid)?;
        let (seq_q, seq_kv) = (TOKENS as i32, TOKENS as i32);
        kernel.launch(&classify::Args { classes: &mut classes, seq_q, seq_kv }, Some(functions))?;
        Ok(equal("classes", &classes.to_vec::<u8>()?, &expected))
    })
}

/// `split`: whether full blocks go to lists of their own.
pub(in crate::attention) fn check_select(
    rule: &Rule,
    device: &Device,
    split: bool,
    kernel: &Kernel,
) -> Result<(), String> {
    let columns = GRID[3];
    verdict(|| {
        let logits = noise(DType::F32, &GRID, 7)?;
        // Without classes every block is admissible.
        let classes = if split { classes(split) } else { vec![PARTIAL; GRID.iter().product()] };
        let mut expected = classes.clone();
        for (classes, logits) in expected.chunks_mut(columns).zip(logits.to_f32_vec()?.chunks(columns)) {
            let Some(selection) = &rule.selection else { continue };
            let mut keep = vec![false; columns];
            cpu::select_row(logits, |j| classes[j] != EMPTY, selection, &mut keep);
            classes.iter_mut().zip(keep).for_each(|(class, keep)| *class = if keep { *class } else { EMPTY });
        }
        let (mut kv, mut full) = (index(device, GRID[2], columns)?, index(device, GRID[2], columns)?);
        let mut keep = poisoned(device, DType::U8, &GRID)?;
        let (top_k, top_p) = rule.thresholds();
        let classes = Tensor::from_slice(&classes, &GRID)?.to(device)?;
        let args = select::Args {
            logits: &mut logits.to(device)?,
            classes: split.then_some(&classes),
            kv_counts: &mut kv.counts,
            kv_indices: &mut kv.indices,
            full_kv_counts: split.then_some(&mut full.counts),
            full_kv_indices: split.then_some(&mut full.indices),
            keep: &mut keep,
            top_k,
            top_p,
        };
        kernel.launch(&args, None)?;
        let keep = keep.to_vec::<u8>()?;
        let apart = keep.iter().zip(&expected).filter(|(a, b)| a != b).count();
        if apart > AT_THE_THRESHOLD {
            return Ok(Err(format!("it keeps {apart} other blocks than the CPU executor on a small case")));
        }
        // The lists are those of what it keeps.
        let mask = map(rule, &keep, split)?;
        let lists = same_lists(&kv, mask.kv())?;
        let full = mask.full_kv().map_or(Ok(Ok(())), |expected| same_lists(&full, expected))?;
        Ok(lists.and(full))
    })
}

/// `split`: as for [`check_select`].
pub(in crate::attention) fn check_transpose(
    rule: &Rule,
    device: &Device,
    split: bool,
    kernel: &Kernel,
) -> Result<(), String> {
    verdict(|| {
        let classes = classes(split);
        let mask = map(rule, &classes, split)?;
        let (mut q, mut full) = (index(device, GRID[3], GRID[2])?, index(device, GRID[3], GRID[2])?);
        let args = transpose::Args {
            keep: &Tensor::from_slice(&classes, &GRID)?.to(device)?,
            q_counts: &mut q.counts,
            q_indices: &mut q.indices,
            full_q_counts: split.then_some(&mut full.counts),
            full_q_indices: split.then_some(&mut full.indices),
        };
        kernel.launch(&args, None)?;
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

fn same_lists(found: &BlockIndex, expected: &BlockIndex) -> Result<Result<(), String>, Error> {
    let counts = equal("counts", &found.counts.to_vec::<i32>()?, &expected.counts.to_vec()?);
    let indices = equal("lists", &found.indices.to_vec::<i32>()?, &expected.indices.to_vec()?);
    Ok(counts.and(indices))
}

/// What is not written must not look right.
fn poisoned(device: &Device, dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
    let mut tensor = Tensor::uninit(device, dtype, shape)?;
    tensor.fill_bytes(0xFF)?;
    Ok(tensor)
}
