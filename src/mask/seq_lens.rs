//! The lengths of the two sequences.

/// How many queries there are, and how many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SeqLens {
    /// Queries.
    pub q: usize,
    /// Keys.
    pub kv: usize,
}

impl SeqLens {
    /// Of self-attention: as many keys as queries.
    pub const fn same(tokens: usize) -> Self {
        SeqLens { q: tokens, kv: tokens }
    }

    pub(crate) const fn pair(self) -> (usize, usize) {
        (self.q, self.kv)
    }
}
