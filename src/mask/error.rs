//! What can be wrong with a block mask.

use super::{BlockSize, MOST_POSITIONS};

/// A block mask that cannot be made or used as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MaskError {
    /// A block size no kernel is made for.
    #[error(
        "sparse blocks of {q}×{kv} (queries × keys), needed one of {}: pick one of these",
        BlockSize::ALL.map(|size| size.to_string()).join(", ")
    )]
    BlockSize {
        /// Queries in a block.
        q: usize,
        /// Keys in a block.
        kv: usize,
    },
    /// A dense map that does not fill its shape.
    #[error(
        "{found} entries were given for a block map of shape {shape:?}, which needs {needed}: pass one entry per block"
    )]
    MapLength {
        /// Entries given.
        found: usize,
        /// Entries the shape has.
        needed: usize,
        /// `[batch, heads, q_blocks, kv_blocks]`.
        shape: [usize; 4],
    },
    /// A number of blocks that does not follow from the sequence length.
    #[error(
        "{found} {dimension}, needed {needed} to cover {seq} positions in blocks of {block}: check the sequence lengths and the block size"
    )]
    Grid {
        /// `q_blocks` or `kv_blocks`.
        dimension: &'static str,
        /// Blocks given.
        found: usize,
        /// Blocks needed.
        needed: usize,
        /// The sequence length.
        seq: usize,
        /// Positions in a block.
        block: usize,
    },
    /// A class that is none of empty, partial and full.
    #[error(
        "block class {found} at {at:?} (batch, head, query block, key block), needed 0 (empty), 1 (partial) or 2 (full): give every block one of these"
    )]
    Class {
        /// Batch, head, query block, key block.
        at: [usize; 4],
        /// The class.
        found: u8,
    },
    /// Block lists whose shapes do not belong together.
    #[error(
        "{what} has shape {found:?}, needed {needed}: counts are [batch, heads, q_blocks], indices add the list's width"
    )]
    ListShape {
        /// `kv_counts`, `kv_indices`, `full_kv_counts` or `full_kv_indices`.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What was needed.
        needed: String,
    },
    /// A row that claims a number of blocks its list cannot hold.
    #[error(
        "{what} is {found} at {at:?} (batch, head, query block), needed 0 to {width}, the width of the list: widen the list or correct the count"
    )]
    Count {
        /// `kv_counts` or `full_kv_counts`.
        what: &'static str,
        /// Batch, head, query block.
        at: [usize; 3],
        /// The count.
        found: i32,
        /// The largest count possible.
        width: usize,
    },
    /// A key block that does not exist.
    #[error(
        "{what} names block {found} at {at:?} (batch, head, query block), needed an index in 0..{blocks}: check the list and the block size"
    )]
    Index {
        /// `kv_indices` or `full_kv_indices`.
        what: &'static str,
        /// Batch, head, query block.
        at: [usize; 3],
        /// The index.
        found: i32,
        /// Number of key blocks.
        blocks: usize,
    },
    /// A key block listed twice in one row: it would count twice in the softmax.
    #[error(
        "key block {block} is listed twice at {at:?} (batch, head, query block): list each block once, as partial or as full"
    )]
    Duplicate {
        /// Batch, head, query block.
        at: [usize; 3],
        /// The block.
        block: usize,
    },
    /// A mask made for other tensors.
    #[error(
        "the mask has {dimension} {found}, the tensors have {needed}: make the mask for these tensors{hint}"
    )]
    Fit {
        /// `batch`, `heads`, `seq_q` or `seq_kv`.
        dimension: &'static str,
        /// The mask's.
        found: usize,
        /// The tensors'.
        needed: usize,
        /// Says where a 1 would do.
        hint: &'static str,
    },
    /// A mask of other blocks than the attention's.
    #[error(
        "the mask has blocks of {found}, this attention was built for {needed}: use `.blocks(…)` to build for {found}"
    )]
    Blocks {
        /// The mask's.
        found: BlockSize,
        /// The attention's.
        needed: BlockSize,
    },
    /// A sequence longer than its positions can be counted.
    #[error(
        "a sequence of {found} positions: needed at most {}, as block lists and functions count in i32, a block beyond the last included: split the sequence",
        MOST_POSITIONS
    )]
    TooLong {
        /// The length.
        found: usize,
    },
    /// More blocks than there is memory for.
    #[error(
        "a mask of {} × {} × {} × {} blocks (batch, heads, query blocks, key blocks) does not fit into memory: share one among heads and batches, or use shorter sequences",
        shape[0], shape[1], shape[2], shape[3]
    )]
    TooLarge {
        /// `[batch, heads, q_blocks, kv_blocks]`.
        shape: [usize; 4],
    },
}
