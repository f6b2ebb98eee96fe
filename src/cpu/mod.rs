//! The CPU executor: the same rules as the kernels, in f32, on tensors in host memory.
//!
//! `mask` pools, scores and selects; `attend` computes the kept blocks and no others, and `backward` their gradients. Work
//! is shared over (batch, head, block), so a mask that drops 95 % of the blocks saves close to 95 % of the time.

mod attend;
mod backward;
mod call;
mod delta;
mod gemm;
mod partial;
mod pool;
mod score;
mod select;
mod softmax;
mod tail;

pub use crate::operands::Upstream;
pub use attend::{attend, attend_with_tail};
pub use backward::{backward, backward_with_tail};
pub(crate) use partial::{Head, PartialScores};
pub(crate) use score::{logits, logits_of_keys};
pub use select::select_row;

use crate::mask::{
    BlockMask, BlockSize, EMPTY, FULL, MaskError, PARTIAL, blocks_of, bytes_of_lists, classify, grid,
};
use crate::operands::{Shape, half_dtype_error};
use crate::select::FINE;
use crate::user_code::UserCode;
use crate::{DType, Error, MaskMod, Scores, Selection, Tensor};
use rayon::prelude::*;

/// The block mask `selection` makes of q `[batch, heads, seq_q, d]` and k `[batch, kv_heads, seq_kv, d]`.
///
/// With a mask function only the blocks in which it keeps an element take part, and those it keeps as a whole are
/// listed as full. A block that it keeps in part scores by the keys that it keeps for at least one query of the block: what the
/// others hold decides nothing.
///
/// # Errors
/// A [`SelectError`](crate::select::SelectError) for a rule out of range, a [`TensorError`](crate::tensor::TensorError)
/// for tensors that do not belong together, [`MaskError::TooLong`] or [`MaskError::TooLarge`] for more positions or blocks than can be
/// counted or kept, and [`Error::DeviceFunction`] when the mask function panics.
pub fn mask(
    q: &Tensor,
    k: &Tensor,
    selection: Option<&Selection>,
    scale: f32,
    blocks: BlockSize,
    mask_mod: Option<&dyn MaskMod>,
) -> Result<BlockMask, Error> {
    if let Some(selection) = selection {
        selection.validate()?;
    }
    let shape = Shape::of(q, k, None)?;
    // Before anything is summed up.
    blocks_of(grid_of(&shape, blocks)?, bytes_of_lists(mask_mod.is_some()))?;
    let by_keys = selection.is_some_and(|selection| selection.scores() == Scores::Keys);
    let pooled = match selection {
        Some(_) if by_keys => {
            let keys = PooledKeys::Runs { means: fine_means(k)?, dtype: k.dtype(), block: blocks.kv() };
            Pooled { q: block_means(q, blocks.q())?, keys }
        }
        Some(_) => Pooled::of_blocks(block_means(q, blocks.q())?, block_means(k, blocks.kv())?),
        None => Pooled::of_blocks(Vec::new(), Vec::new()),
    };
    let partial = mask_mod.map(|function| {
        let seqs = (shape.seq_q, shape.seq_kv);
        PartialScores { function, k, blocks, seqs, scale, by_keys }
    });
    select(&pooled, &shape, selection, scale, blocks, (mask_mod, partial.as_ref()))
}

/// What blocks are scored from.
struct Pooled {
    /// `[batch, heads, q_blocks, d]`.
    q: Vec<f32>,
    keys: PooledKeys,
}

enum PooledKeys {
    /// Means of blocks, `[batch, kv_heads, kv_blocks, d]`.
    Blocks(Vec<f32>),
    /// [`fine_means`] of keys of a dtype, and the keys of a block.
    Runs { means: Vec<f32>, dtype: DType, block: usize },
}

impl Pooled {
    fn of_blocks(q: Vec<f32>, k: Vec<f32>) -> Self {
        Pooled { q, keys: PooledKeys::Blocks(k) }
    }

    /// The mean queries of one of `count` heads.
    fn queries(&self, head: usize, count: usize) -> &[f32] {
        part(&self.q, head, count)
    }

    /// The scores of these queries by one of `count` key heads: `[q_blocks, kv_blocks]`.
    fn logits(&self, q: &[f32], (kv_head, count): (usize, usize), d: usize, scale: f32) -> Vec<f32> {
        match &self.keys {
            PooledKeys::Blocks(means) => score::logits(q, part(means, kv_head, count), d, scale),
            PooledKeys::Runs { means, dtype, block } => {
                score::logits_of_keys(q, part(means, kv_head, count), d, *block, scale, *dtype)
            }
        }
    }
}

/// One of `count` equal parts.
fn part(all: &[f32], number: usize, count: usize) -> &[f32] {
    let each = all.len() / count;
    &all[number * each..][..each]
}

/// The same of block means, contiguous `[batch, heads, q_blocks, d]` and `[batch, kv_heads, kv_blocks, d]`, of tensors of
/// `shape`. All blocks score by these.
pub(crate) fn mask_of_means(
    [q_means, k_means]: [Vec<f32>; 2],
    shape: &Shape,
    selection: Option<&Selection>,
    scale: f32,
    blocks: BlockSize,
    mask_mod: Option<&dyn MaskMod>,
) -> Result<BlockMask, Error> {
    let pooled = Pooled::of_blocks(q_means, k_means);
    select(&pooled, shape, selection, scale, blocks, (mask_mod, None))
}

fn select(
    pooled: &Pooled,
    shape: &Shape,
    selection: Option<&Selection>,
    scale: f32,
    blocks: BlockSize,
    (mask_mod, partial): (Option<&dyn MaskMod>, Option<&PartialScores<'_>>),
) -> Result<BlockMask, Error> {
    let grid = grid_of(shape, blocks)?;
    let [_, _, q_blocks, kv_blocks] = grid;
    let seqs = (shape.seq_q, shape.seq_kv);
    let mut classes = match mask_mod {
        Some(function) => classify(function, grid, blocks, seqs)?,
        None => vec![PARTIAL; blocks_of(grid, bytes_of_lists(false))?],
    };
    if let Some(selection) = selection.filter(|_| !classes.is_empty()) {
        drop_unselected(&mut classes, pooled, shape, selection, scale, [q_blocks, kv_blocks], partial)?;
    }
    debug_assert!(classes.iter().all(|&class| class <= FULL));
    BlockMask::from_checked(&classes, grid, blocks, seqs, mask_mod.is_some())
}

/// `[batch, heads, q_blocks, kv_blocks]`.
fn grid_of(shape: &Shape, blocks: BlockSize) -> Result<[usize; 4], MaskError> {
    grid(shape.batch, shape.heads, blocks, (shape.seq_q, shape.seq_kv))
}

/// Empties the admissible blocks that the rule does not select, row by row.
fn drop_unselected(
    classes: &mut [u8],
    pooled: &Pooled,
    shape: &Shape,
    selection: &Selection,
    scale: f32,
    [q_blocks, kv_blocks]: [usize; 2],
    partial: Option<&PartialScores<'_>>,
) -> Result<(), Error> {
    let code = UserCode::new([partial.map_or("", |partial| partial.function.name()), ""]);
    let of_head = |(head, classes): (usize, &mut [u8])| {
        let q = pooled.queries(head, shape.batch * shape.heads);
        let kv_head = (shape.kv_unit(head), shape.batch * shape.kv_heads);
        let mut logits = pooled.logits(q, kv_head, shape.d, scale);
        if let Some(partial) = partial {
            let place =
                Head { batch: head / shape.heads, head: head % shape.heads, kv_unit: shape.kv_unit(head) };
            partial.overwrite(&code, place, classes, q, &mut logits)?;
        }
        let mut keep = vec![false; kv_blocks];
        for (classes, logits) in classes.chunks_mut(kv_blocks).zip(logits.chunks(kv_blocks)) {
            select_row(logits, |j| classes[j] != EMPTY, selection, &mut keep);
            for (class, &keep) in classes.iter_mut().zip(&keep) {
                *class = if keep { *class } else { EMPTY };
            }
        }
        Ok(())
    };
    code.run(|| classes.par_chunks_mut(q_blocks * kv_blocks).enumerate().try_for_each(of_head))?
}

/// The means of runs of [`FINE`] keys, rounded to the dtype of `k`, contiguous `[batch, kv_heads, runs, d]`.
pub(crate) fn fine_means(k: &Tensor) -> Result<Vec<f32>, Error> {
    let mut means = block_means(k, FINE)?;
    means.iter_mut().for_each(|mean| *mean = score::rounded(*mean, k.dtype()));
    Ok(means)
}

/// The f32 means of runs of `block` rows of a `[batch, heads, seq, d]` tensor: contiguous `[batch, heads, blocks, d]`.
pub(crate) fn block_means(x: &Tensor, block: usize) -> Result<Vec<f32>, Error> {
    let d = x.shape()[3];
    match x.dtype() {
        DType::F16 => pool::block_means::<half::f16>(x, d, block),
        DType::Bf16 => pool::block_means::<half::bf16>(x, d, block),
        _ => Err(half_dtype_error("x", x)),
    }
}
