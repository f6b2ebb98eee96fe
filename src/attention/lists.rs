//! The lists of a block mask, in memory of the library's or of a caller's.

use super::memory::Memory;
use super::{Rule, Sizes};
use crate::kernels::{dropped, rank::tensors as rows, transpose::tensors as columns};
use crate::launch::TensorDecl;
use crate::tensor::Named;
use crate::{BlockIndex, BlockMask, Error, Tensor};

/// The lists of a block mask in memory of the caller's: see [`BlockMask`](crate::BlockMask), whose names these are.
#[derive(Debug)]
pub struct MaskLists {
    /// Key blocks of each query block, the mask function applying within them: counts i32 `[batch, heads, q_blocks]`,
    /// indices i32 `[batch, heads, q_blocks, kv_blocks]`.
    pub kv: BlockIndex,
    /// Those the mask function keeps as a whole; where there is a mask function.
    pub full_kv: Option<BlockIndex>,
    /// The transpose of `kv`, counts `[batch, heads, kv_blocks]` and indices `[batch, heads, kv_blocks, q_blocks]`,
    /// when it is wanted.
    pub q: Option<BlockIndex>,
    /// The transpose of `full_kv`.
    pub full_q: Option<BlockIndex>,
    /// The dropped blocks, a bit each, as [`BlockMask::dropped`]: i32 `[batch, heads, q_blocks, ceil(kv_blocks / 32)]`; where there is a
    /// [tail](super::AttentionBuilder::tail).
    pub dropped: Option<Tensor>,
}

impl From<&BlockMask> for MaskLists {
    /// All lists of a mask, which they share the memory of.
    fn from(mask: &BlockMask) -> Self {
        MaskLists {
            kv: mask.kv().clone(),
            full_kv: mask.full_kv().cloned(),
            q: Some(mask.q().clone()),
            full_q: mask.full_q().cloned(),
            dropped: mask.dropped().cloned(),
        }
    }
}

impl MaskLists {
    /// Lists by query, and none else: `MaskLists { full_kv, ..MaskLists::new(kv) }` has one more.
    pub fn new(kv: BlockIndex) -> Self {
        MaskLists { kv, full_kv: None, q: None, full_q: None, dropped: None }
    }

    /// Room for the lists of a mask; those by key block only where they are asked for.
    pub(super) fn make(
        rule: &Rule,
        sizes: &Sizes,
        by_key: bool,
        memory: &mut Memory<'_>,
    ) -> Result<Self, Error> {
        let split = rule.is_split();
        let kv = memory.index([&rows::KV_COUNTS, &rows::KV_INDICES], sizes)?;
        let dropped =
            rule.has_tail().then(|| memory.argument(&dropped::tensors::DROPPED, sizes)).transpose()?;
        let mut wanted =
            |is: bool, decls: [&TensorDecl; 2]| is.then(|| memory.index(decls, sizes)).transpose();
        Ok(MaskLists {
            full_kv: wanted(split, [&rows::FULL_KV_COUNTS, &rows::FULL_KV_INDICES])?,
            q: wanted(by_key, [&columns::Q_COUNTS, &columns::Q_INDICES])?,
            full_q: wanted(by_key && split, [&columns::FULL_Q_COUNTS, &columns::FULL_Q_INDICES])?,
            kv,
            dropped,
        })
    }

    /// The mask of lists with their transpose.
    pub(super) fn into_mask(self, rule: &Rule, sizes: &Sizes) -> BlockMask {
        let MaskLists { kv, full_kv, q, full_q, dropped } = self;
        let Some(q) = q else { unreachable!("the library's own lists have their transpose") };
        BlockMask::from_parts(rule.blocks, (sizes.seq_q, sizes.seq_kv), (kv, full_kv), (q, full_q))
            .with_dropped_bits(dropped)
    }

    /// The same lists: what the kernels write to these, the others show.
    pub(super) fn share(&self) -> Self {
        let MaskLists { kv, full_kv, q, full_q, dropped } = self;
        MaskLists {
            kv: kv.clone(),
            full_kv: full_kv.clone(),
            q: q.clone(),
            full_q: full_q.clone(),
            dropped: dropped.clone(),
        }
    }

    /// The lists by query that there are, by the names that the kernels have for them.
    pub(super) fn by_query(&self) -> impl Iterator<Item = Named<'_>> {
        let kv = named(["kv_counts", "kv_indices"], Some(&self.kv));
        let full = named(["full_kv_counts", "full_kv_indices"], self.full_kv.as_ref());
        kv.chain(full).chain(self.dropped.iter().map(|dropped| ("dropped", dropped)))
    }

    /// All that there are.
    pub(super) fn named(&self) -> impl Iterator<Item = Named<'_>> {
        let by_key = named(["q_counts", "q_indices"], self.q.as_ref());
        let full_by_key = named(["full_q_counts", "full_q_indices"], self.full_q.as_ref());
        self.by_query().chain(by_key).chain(full_by_key)
    }

    /// All that there are, to be written.
    pub(super) fn each(&mut self) -> impl Iterator<Item = &mut BlockIndex> {
        let MaskLists { kv, full_kv, q, full_q, .. } = self;
        [Some(kv), full_kv.as_mut(), q.as_mut(), full_q.as_mut()].into_iter().flatten()
    }
}

fn named<'a>(
    [counts, indices]: [&'static str; 2],
    index: Option<&'a BlockIndex>,
) -> impl Iterator<Item = Named<'a>> {
    index.into_iter().flat_map(move |index| [(counts, &index.counts), (indices, &index.indices)])
}
