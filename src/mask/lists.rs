//! Block masks from FlexAttention's own lists.

use super::build::{grid, list};
use super::{
    BlockIndex, BlockMask, BlockSize, EMPTY, FULL, HostLists, MaskError, PARTIAL, SeqLens, blocks_of,
    bytes_of_lists,
};
use crate::{DType, Error, Tensor};

impl BlockMask {
    /// A mask from `kv_num_blocks` and `kv_indices` of FlexAttention, kept as they are; order within a row is free.
    ///
    /// `counts` is i32 `[batch|1, heads|1, q_blocks]`, `indices` i32 `[batch|1, heads|1, q_blocks, max]`; entries
    /// beyond a row's count are not looked at. `full` holds the lists of the blocks that the mask function keeps as a
    /// whole, with counts of the same shape.
    ///
    /// # Errors
    /// [`MaskError`] for shapes that do not belong together, a count or an index out of range, or a block listed
    /// twice; [`TensorError::DType`](crate::TensorError::DType) unless the lists are i32.
    pub fn from_kv_indices(
        counts: Tensor,
        indices: Tensor,
        full: Option<BlockIndex>,
        blocks: BlockSize,
        seqs: SeqLens,
    ) -> Result<Self, Error> {
        let seqs = seqs.pair();
        let kv = BlockIndex { counts, indices };
        kv.counts.expect_dtype("kv_counts", DType::I32)?;
        kv.indices.expect_dtype("kv_indices", DType::I32)?;
        let &[batch, heads, rows] = kv.counts.shape() else {
            return Err(list_shape("kv_counts", &kv.counts, "three dimensions".into()));
        };
        let shape = grid(batch, heads, blocks, seqs)?;
        if rows != shape[2] {
            let (seq, block) = (seqs.0, blocks.q());
            let error = MaskError::Grid { dimension: "q_blocks", found: rows, needed: shape[2], seq, block };
            return Err(error.into());
        }
        let mut classes = vec![EMPTY; blocks_of(shape, bytes_of_lists(full.is_some()))?];
        mark(&mut classes, shape, &kv, ["kv_counts", "kv_indices"], PARTIAL)?;
        if let Some(full) = &full {
            full.counts.expect_dtype("full_kv_counts", DType::I32)?;
            full.indices.expect_dtype("full_kv_indices", DType::I32)?;
            mark(&mut classes, shape, full, ["full_kv_counts", "full_kv_indices"], FULL)?;
        }
        let q = list(&classes, shape, true, |class| class == PARTIAL)?;
        let full_q =
            full.is_some().then(|| list(&classes, shape, true, |class| class == FULL)).transpose()?;
        Ok(Self::from_parts(blocks, seqs, (kv, full), (q, full_q)))
    }
}

fn list_shape(what: &'static str, tensor: &Tensor, needed: String) -> Error {
    MaskError::ListShape { what, found: tensor.shape().to_vec(), needed }.into()
}

/// Validates one pair of lists and writes their blocks into the class map.
fn mark(
    classes: &mut [u8],
    shape: [usize; 4],
    index: &BlockIndex,
    [counts, indices]: [&'static str; 2],
    class: u8,
) -> Result<(), Error> {
    let [batch, heads, rows, blocks] = shape;
    if index.counts.shape() != [batch, heads, rows] {
        return Err(list_shape(counts, &index.counts, format!("{:?}", [batch, heads, rows])));
    }
    let fits = matches!(index.indices.shape(), &[b, h, r, _] if [b, h, r] == [batch, heads, rows]);
    if !fits {
        return Err(list_shape(indices, &index.indices, format!("[{batch}, {heads}, {rows}, width]")));
    }
    let width = index.indices.shape()[3];
    let lists = HostLists::read(index)?;
    for (row, &found) in lists.counts.iter().enumerate() {
        let at = [row / rows / heads, row / rows % heads, row % rows];
        if usize::try_from(found).map_or(true, |count| count > width) {
            return Err(MaskError::Count { what: counts, at, found, width }.into());
        }
        for &found in lists.row(row) {
            let Some(block) = usize::try_from(found).ok().filter(|&block| block < blocks) else {
                return Err(MaskError::Index { what: indices, at, found, blocks }.into());
            };
            let slot = &mut classes[row * blocks + block];
            if *slot != EMPTY {
                return Err(MaskError::Duplicate { at, block }.into());
            }
            *slot = class;
        }
    }
    Ok(())
}
