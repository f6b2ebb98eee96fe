//! The sparse blocks kernels are made for.

use super::MaskError;
use crate::kernels::specs::forward;
use std::fmt;

/// The sparse block: a run of queries against a run of keys, kept or dropped as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockSize {
    q: usize,
    kv: usize,
}

/// How many sizes the forward is declared for.
const COUNT: usize = {
    let (mut at, mut count) = (0, 0);
    while at < forward::SPECS.len() {
        count += is_first(at) as usize;
        at += 1;
    }
    count
};

/// Whether no spec before this one has its block size.
const fn is_first(at: usize) -> bool {
    let mut before = 0;
    while before < at {
        let [one, other] = [&forward::SPECS[before], &forward::SPECS[at]];
        if one.block_q == other.block_q && one.block_kv == other.block_kv {
            return false;
        }
        before += 1;
    }
    true
}

impl BlockSize {
    /// The sizes there are, the default first: those that the forward is declared for.
    pub const ALL: [BlockSize; COUNT] = {
        let mut all = [BlockSize { q: 0, kv: 0 }; COUNT];
        let (mut at, mut known) = (0, 0);
        while at < forward::SPECS.len() {
            if is_first(at) {
                let forward::Spec { block_q, block_kv, .. } = forward::SPECS[at];
                all[known] = BlockSize { q: block_q as usize, kv: block_kv as usize };
                known += 1;
            }
            at += 1;
        }
        all
    };

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::specs::{
        backward_kv, backward_q, classify, pool, pool_values, score_partial, tail_gather,
    };

    #[test]
    fn every_kernel_over_tokens_takes_every_size() {
        for blocks in BlockSize::ALL {
            let [q, kv] = [blocks.q() as i64, blocks.kv() as i64];
            let takes = [
                forward::SPECS.iter().any(|spec| (spec.block_q, spec.block_kv) == (q, kv)),
                backward_q::SPECS.iter().any(|spec| (spec.block_q, spec.block_kv) == (q, kv)),
                backward_kv::SPECS.iter().any(|spec| (spec.block_q, spec.block_kv) == (q, kv)),
                classify::SPECS.iter().any(|spec| (spec.block_q, spec.block_kv) == (q, kv)),
                pool::SPECS.iter().any(|spec| (spec.block_q, spec.block_kv) == (q, kv)),
                pool_values::SPECS.iter().any(|spec| (spec.block_q, spec.block_kv) == (q, kv)),
                tail_gather::SPECS.iter().any(|spec| (spec.block_q, spec.block_kv) == (q, kv)),
                score_partial::SPECS.iter().any(|spec| (spec.block_q, spec.block_kv) == (q, kv)),
            ];
            assert_eq!(takes, [true; 8], "{blocks}");
        }
        assert_eq!(BlockSize::default(), BlockSize::new(128, 64).unwrap());
        for (at, blocks) in BlockSize::ALL.iter().enumerate() {
            assert!(!BlockSize::ALL[..at].contains(blocks), "{blocks}");
        }
    }
}
