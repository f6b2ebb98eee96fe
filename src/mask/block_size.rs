//! The sparse blocks kernels are made for.

use super::MaskError;
use std::fmt;

/// The sparse block: a run of queries against a run of keys, kept or dropped as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockSize {
    q: usize,
    kv: usize,
}

impl BlockSize {
    /// The sizes there are, the default first.
    pub const ALL: [BlockSize; 4] = [
        BlockSize { q: 128, kv: 64 },
        BlockSize { q: 128, kv: 128 },
        BlockSize { q: 64, kv: 64 },
        BlockSize { q: 64, kv: 128 },
    ];

    /// `q` queries by `kv` keys.
    ///
    /// # Errors
    /// [`MaskError::BlockSize`] unless the pair is in [`ALL`](Self::ALL).
    pub fn new(q: usize, kv: usize) -> Result<Self, MaskError> {
        let size = BlockSize { q, kv };
        if Self::ALL.contains(&size) { Ok(size) } else { Err(MaskError::BlockSize { q, kv }) }
    }

    /// Queries in a block.
    pub const fn q(self) -> usize {
        self.q
    }

    /// Keys in a block.
    pub const fn kv(self) -> usize {
        self.kv
    }

    /// Whether so many blocks of queries and of keys cover the sequences, neither fewer nor more.
    pub(crate) fn check_grid(
        self,
        [q_blocks, kv_blocks]: [usize; 2],
        (seq_q, seq_kv): (usize, usize),
    ) -> Result<(), MaskError> {
        for (dimension, found, seq, block) in
            [("q_blocks", q_blocks, seq_q, self.q), ("kv_blocks", kv_blocks, seq_kv, self.kv)]
        {
            let needed = seq.div_ceil(block);
            if found != needed {
                return Err(MaskError::Grid { dimension, found, needed, seq, block });
            }
        }
        Ok(())
    }
}

impl Default for BlockSize {
    /// 128 queries by 64 keys.
    fn default() -> Self {
        Self::ALL[0]
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}", self.q, self.kv)
    }
}
