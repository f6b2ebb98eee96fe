//! What stands for the blocks that a mask drops.
//!
//! Without a tail a dropped block is as if its keys were not there. With one it takes part in the softmax as a single key: the mean of its
//! keys, with the mean of its values, and with their number as weight. For row `r` of query block `i`, scale `σ`, and a dropped block `j` of
//! `c_j` keys with means `k̄_j` and `v̄_j`, the score of that key is
//!
//! - [`Tail::Block`]: `σ · q̄_i · k̄_j + ln c_j`, with the mean `q̄_i` of the rows of the query block: one score for them all;
//! - [`Tail::Row`]: `σ · q_r · k̄_j + ln c_j`.
//!
//! A row tail may have one mean for a run of several blocks: that of all its keys, with the number of those that are dropped as weight. Blocks of the
//! run that are kept lend it their keys, and count for nothing; where a query may not attend to all keys of the run, or a block of it is listed among
//! those that a mask function cuts, its dropped blocks have means of their own, so that no forbidden key shows.
//!
//! A row none of whose blocks is dropped is what it is without a tail. Where keys are alike within every dropped block (and queries within
//! every block, for [`Tail::Block`]; within every run that drops a block, for [`Tail::Row`] over several, and values there too where a block of it
//! is kept), the result is dense attention's.

use crate::BlockSize;
use std::ops::Range;

/// What stands for the blocks that a mask drops: see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Tail {
    /// Nothing: their keys take no part.
    #[default]
    None,
    /// The mean key of each, scored by the mean query of a query block.
    Block,
    /// The mean key of each run of blocks, scored by every query. [`Tail::row`] makes the one that "row" means everywhere.
    Row {
        /// Keys of a run that has one mean, a multiple of the block's.
        keys: usize,
    },
}

/// A tail that cannot be used as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TailError {
    /// A score function, which is of pairs of a query and a key.
    #[error(
        "a tail beside the score function `{name}`: a mean stands for many keys, and what a function of pairs makes of it is not defined; leave one of \
         them out"
    )]
    ScoreMod {
        /// The function.
        name: String,
    },
    /// A run of keys that is no whole number of blocks.
    #[error("a row tail over {keys} keys, needed a multiple of the {block} keys of a sparse block: take {block} or {}", 2 * block)]
    Keys {
        /// Keys given.
        keys: usize,
        /// Keys in a sparse block.
        block: usize,
    },
    /// A mask that does not say which blocks it drops.
    #[error(
        "the mask does not say which of the blocks it leaves out are dropped and which are forbidden: give it `with_admissible(&mask)`, or \
         `with_unlisted_dropped()` if none is forbidden"
    )]
    Unknown,
}

impl Tail {
    /// Keys of a run of the row tail, unless others are asked for: as good as single blocks of 64 keys on the tensors that were measured, at half
    /// of the work.
    pub const ROW_KEYS: usize = 128;

    /// The row tail as `--tail row` and Python's `tail="row"` have it: a mean for each run of [`ROW_KEYS`](Self::ROW_KEYS) keys. Where that is no
    /// multiple of the block's, a run has the next one that is.
    ///
    /// ```
    /// use tilewright::{BlockSize, Tail};
    ///
    /// assert_eq!(Tail::row(BlockSize::new(128, 64)?), Tail::Row { keys: 128 });
    /// # Ok::<(), tilewright::MaskError>(())
    /// ```
    pub const fn row(blocks: BlockSize) -> Self {
        Tail::Row { keys: Self::ROW_KEYS.next_multiple_of(blocks.kv()) }
    }

    /// Blocks that one mean may stand for.
    ///
    /// # Errors
    /// [`TailError::Keys`].
    pub(crate) fn blocks_a_mean(self, blocks: BlockSize) -> Result<usize, TailError> {
        match self {
            Tail::None | Tail::Block => Ok(1),
            Tail::Row { keys } if keys > 0 && keys.is_multiple_of(blocks.kv()) => Ok(keys / blocks.kv()),
            Tail::Row { keys } => Err(TailError::Keys { keys, block: blocks.kv() }),
        }
    }
}

/// A mean that stands for dropped blocks of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mean {
    /// The blocks whose keys it is the mean of.
    pub(crate) of: Range<usize>,
    /// How many keys it stands for: those of the dropped blocks among them.
    pub(crate) keys: usize,
}

/// The blocks of a row, as far as its means go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    /// Of each block.
    pub(crate) is_dropped: &'a [bool],
    /// Of each block, whether a query of the row may attend to all of its keys: it is kept, or dropped.
    pub(crate) is_whole: &'a [bool],
    /// Blocks in a run.
    pub(crate) run: usize,
    /// Keys in a block, and in all.
    pub(crate) block: usize,
    pub(crate) seq_kv: usize,
}

impl Row<'_> {
    /// The mean that a block's keys are part of, where there is one: of its run, counted from the first block, or of itself.
    pub(crate) fn mean_at(&self, block: usize) -> Option<Mean> {
        let first = block / self.run * self.run;
        let run = first..(first + self.run).min(self.is_dropped.len());
        let keys = |blocks: Range<usize>| {
            let dropped = blocks.filter(|&block| self.is_dropped[block]);
            dropped.map(|block| self.block.min(self.seq_kv - block * self.block)).sum::<usize>()
        };
        let of = if self.is_whole[run.clone()].iter().all(|&whole| whole) { run } else { block..block + 1 };
        let keys = keys(of.clone());
        (keys > 0).then_some(Mean { of, keys })
    }

    /// All means, in the order of their blocks.
    pub(crate) fn means(&self) -> impl Iterator<Item = Mean> {
        (0..self.is_dropped.len())
            .filter_map(|block| self.mean_at(block).filter(|mean| mean.of.start == block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(text: &str) -> Vec<bool> {
        text.chars().filter(|c| *c != ' ').map(|c| c == '1').collect()
    }

    #[test]
    fn a_run_that_may_be_seen_as_a_whole_has_one_mean() {
        let found = |dropped: &str, whole: &str, run| -> Vec<(Range<usize>, usize)> {
            let (dropped, whole) = (bits(dropped), bits(whole));
            // The last of 9 blocks is short.
            let row = Row { is_dropped: &dropped, is_whole: &whole, run, block: 64, seq_kv: 8 * 64 + 5 };
            let means: Vec<Mean> = row.means().collect();
            for (block, mean) in means.iter().flat_map(|mean| mean.of.clone().map(move |block| (block, mean)))
            {
                assert_eq!(row.mean_at(block).as_ref(), Some(mean), "block {block}");
            }
            means.into_iter().map(|mean| (mean.of, mean.keys)).collect()
        };
        let dropped = "11 10 00 01 1";
        let alone = [(0..1, 64), (1..2, 64), (2..3, 64), (7..8, 64), (8..9, 5)];
        assert_eq!(found(dropped, "11 11 11 11 1", 1), alone);
        // The second run's other block is kept, the fourth's is forbidden.
        assert_eq!(found(dropped, "11 11 00 01 1", 2), [(0..2, 128), (2..4, 64), (7..8, 64), (8..9, 5)]);
        assert_eq!(found(dropped, "11 11 11 11 1", 4), [(0..4, 192), (4..8, 64), (8..9, 5)]);
        assert_eq!(
            found("01 10 00 01 1", "01 10 00 01 1", 2),
            [(1..2, 64), (2..3, 64), (7..8, 64), (8..9, 5)]
        );
        assert_eq!(found("00 00 00 00 0", "11 11 11 11 1", 2), []);
    }

    #[test]
    fn a_run_is_a_number_of_blocks() {
        for blocks in BlockSize::ALL {
            let run = Tail::row(blocks).blocks_a_mean(blocks).unwrap() * blocks.kv();
            assert!((Tail::ROW_KEYS..Tail::ROW_KEYS + blocks.kv()).contains(&run), "{blocks:?}: {run}");
        }
        let blocks = BlockSize::default();
        assert_eq!(Tail::row(blocks).blocks_a_mean(blocks), Ok(2));
        assert_eq!(Tail::Row { keys: 256 }.blocks_a_mean(blocks), Ok(4));
        for keys in [0, 32, 100] {
            assert_eq!(Tail::Row { keys }.blocks_a_mean(blocks), Err(TailError::Keys { keys, block: 64 }));
        }
    }
}
