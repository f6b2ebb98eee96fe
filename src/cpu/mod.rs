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
/// listed as full. A block that it keeps in part scores by the mean of the keys that it keeps for at least one query of the
/// block: what the others hold decides nothing.
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
    let means = match selection.map(Selection::scores) {
        Some(Scores::Means) => (block_means(q, blocks.q())?, block_means(k, blocks.kv())?),
        Some(Scores::Keys) => (block_means(q, blocks.q())?, fine_means(k)?),
        None => Default::default(),
    };
    let partial = mask_mod.map(|function| {
        let seqs = (shape.seq_q, shape.seq_kv);
        let by_keys = selection.is_some_and(|selection| selection.scores() == Scores::Keys);
        PartialScores { function, k, blocks, seqs, scale, by_keys }
    });
    select((&means, k.dtype()), &shape, selection, scale, blocks, (mask_mod, partial.as_ref()))
}

/// The same of block means, contiguous `[batch, heads, q_blocks, d]` and `[batch, kv_heads, kv_blocks, d]`, of tensors of
/// `shape`. All blocks score by these.
pub(crate) fn mask_of_means(
    means: &(Vec<f32>, Vec<f32>),
    shape: &Shape,
    selection: Option<&Selection>,
    scale: f32,
    blocks: BlockSize,
    mask_mod: Option<&dyn MaskMod>,
) -> Result<BlockMask, Error> {
    // Rounding is asked for by keys alone.
    select((means, DType::F32), shape, selection, scale, blocks, (mask_mod, None))
}

fn select(
    means: (&(Vec<f32>, Vec<f32>), DType),
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
        drop_unselected(
            &mut classes,
            means,
            shape,
            selection,
            (scale, blocks.kv()),
            [q_blocks, kv_blocks],
            partial,
        )?;
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
    ((pooled_q, pooled_k), dtype): (&(Vec<f32>, Vec<f32>), DType),
    shape: &Shape,
    selection: &Selection,
    (scale, block_kv): (f32, usize),
    [q_blocks, kv_blocks]: [usize; 2],
    partial: Option<&PartialScores<'_>>,
) -> Result<(), Error> {
    let code = UserCode::new([partial.map_or("", |partial| partial.function.name()), ""]);
    let of_head = |(head, classes): (usize, &mut [u8])| {
        let q = &pooled_q[head * q_blocks * shape.d..][..q_blocks * shape.d];
        // Of blocks, or of runs of a few keys.
        let of_head = pooled_k.len() / (shape.batch * shape.kv_heads);
        let k = &pooled_k[shape.kv_unit(head) * of_head..][..of_head];
        let mut logits = match selection.scores() {
            Scores::Means => score::logits(q, k, shape.d, scale),
            Scores::Keys => score::logits_of_keys(q, k, shape.d, block_kv, scale, dtype),
        };
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
