//! Block masks in FlexAttention's form: for every block of queries, the list of key blocks it attends to.
//!
//! ```
//! use tilewright::{BlockMask, BlockSize, SeqLens};
//! // Two blocks of 128 queries against four of 64 keys, the default; each query block keeps two.
//! let map = [true, false, false, true, false, true, true, false];
//! let mask = BlockMask::from_dense(&map, [1, 1, 2, 4], BlockSize::default(), SeqLens::same(256))?;
//! assert_eq!(mask.sparsity()?, 0.5);
//! assert_eq!(mask.kv().counts.to_vec::<i32>()?, [2, 2]);
//! assert_eq!(mask.kv().indices.to_vec::<i32>()?, [0, 3, 0, 0, 1, 2, 0, 0]);
//! assert_eq!(mask.q().counts.to_vec::<i32>()?, [1, 1, 1, 1]); // the transpose: query blocks of each key block
//! # Ok::<(), tilewright::Error>(())
//! ```

mod block_size;
mod build;
mod classify;
mod dropped;
mod error;
mod lists;
mod seq_lens;

pub use block_size::BlockSize;
pub(crate) use build::grid;
pub(crate) use classify::{classify, span};
pub use error::MaskError;
pub use seq_lens::SeqLens;

use crate::{Device, Error, Tensor, room};

pub(crate) const EMPTY: u8 = DenseMap::EMPTY;
pub(crate) const PARTIAL: u8 = DenseMap::PARTIAL;
pub(crate) const FULL: u8 = DenseMap::FULL;

/// The longest sequence: positions count in 32 bits, and a block beyond the last is counted too.
pub(crate) const MOST_POSITIONS: usize = i32::MAX as usize - 256;

/// How many blocks a map of this shape has, where each may take so many bytes.
///
/// # Errors
/// [`MaskError::TooLarge`] where there is no memory for them.
pub(crate) fn blocks_of(shape: [usize; 4], bytes: usize) -> Result<usize, MaskError> {
    // Counts, lengths and orders of rows and columns, of which a map without blocks may have many.
    const BYTES_A_ROW: usize = 32;
    let [batch, heads, rows, columns] = shape;
    let of_rows = rows
        .checked_add(columns)
        .and_then(|rows| rows.checked_add(1))
        .and_then(|rows| room::product(&[batch.max(1), heads.max(1), rows, BYTES_A_ROW]));
    let blocks = room::product(&shape);
    let in_all = blocks.and_then(|blocks| blocks.checked_mul(bytes)?.checked_add(of_rows?));
    blocks.filter(|_| room::has(in_all)).ok_or(MaskError::TooLarge { shape })
}

/// Bytes a block of what [`BlockMask::from_checked`] makes of a class each: the classes, and while the last is copied, lists by query
/// and by key; twice as many where full blocks have their own.
pub(crate) const fn bytes_of_lists(split: bool) -> usize {
    let lists = if split { 4 } else { 2 };
    size_of::<u8>() + (lists + 1) * size_of::<i32>()
}

/// One list of blocks for every row of blocks.
#[derive(Debug, Clone)]
pub struct BlockIndex {
    /// How many blocks each row lists: i32 `[batch|1, heads|1, rows]`.
    pub counts: Tensor,
    /// The blocks, each row's first `counts` entries: i32 `[batch|1, heads|1, rows, max]`.
    pub indices: Tensor,
}

/// Which key blocks each query block attends to, and the transpose.
///
/// `kv` lists the blocks to which the mask function, where there is one, is applied element by element; `full_kv`
/// lists those it keeps as a whole. Without a mask function every kept block is in `kv`, and `full_kv` is absent.
/// A batch or head dimension of 1 is shared by all batches or heads.
#[derive(Debug, Clone)]
pub struct BlockMask {
    blocks: BlockSize,
    seq_q: usize,
    seq_kv: usize,
    kv: BlockIndex,
    full_kv: Option<BlockIndex>,
    q: BlockIndex,
    full_q: Option<BlockIndex>,
    /// The share of blocks kept, where the mask was made on the host.
    density: Option<f64>,
    /// The query blocks of each head by falling number of key blocks, i32 `[batch|1, heads|1, q_blocks]`, where that is known and
    /// matters.
    row_order: Option<Tensor>,
    /// A bit a block: whether a [tail](crate::tail) stands for it. Absent where the mask does not say.
    dropped: Option<Tensor>,
}

/// A block mask as one class per block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenseMap {
    /// `[batch|1, heads|1, q_blocks, kv_blocks]`.
    pub shape: [usize; 4],
    /// [`EMPTY`](Self::EMPTY), [`PARTIAL`](Self::PARTIAL) or [`FULL`](Self::FULL), row-major.
    pub classes: Vec<u8>,
}

impl DenseMap {
    /// Class of a block of which no element is kept.
    pub const EMPTY: u8 = 0;
    /// Class of a block whose elements are kept or dropped one by one by the mask function.
    pub const PARTIAL: u8 = 1;
    /// Class of a block of which every existing element is kept.
    pub const FULL: u8 = 2;
}

impl BlockMask {
    /// A mask of lists that are already consistent: those of the selection kernels, or of the constructors here.
    pub(crate) fn from_parts(
        blocks: BlockSize,
        (seq_q, seq_kv): (usize, usize),
        (kv, full_kv): (BlockIndex, Option<BlockIndex>),
        (q, full_q): (BlockIndex, Option<BlockIndex>),
    ) -> Self {
        BlockMask {
            blocks,
            seq_q,
            seq_kv,
            kv,
            full_kv,
            q,
            full_q,
            density: None,
            row_order: None,
            dropped: None,
        }
    }

    /// The share of blocks kept, 0 to 1, where it is known without asking the GPU: of masks made on the host.
    pub(crate) fn known_density(&self) -> Option<f64> {
        self.density
    }

    /// The order in which the forward had best begin each head's query blocks, where one is known.
    pub(crate) fn row_order(&self) -> Option<&Tensor> {
        self.row_order.as_ref()
    }

    /// Whether nobody has looked yet if an order pays: a mask made on the host, which knows its density, has one unless its rows
    /// are all alike.
    pub(crate) fn lacks_row_order(&self) -> bool {
        self.row_order.is_none() && self.density.is_none()
    }

    /// The same mask with an order of its query blocks.
    pub(crate) fn with_row_order(self, row_order: Option<Tensor>) -> Self {
        BlockMask { row_order, ..self }
    }

    /// Key blocks of each query block, the mask function applying within them.
    pub fn kv(&self) -> &BlockIndex {
        &self.kv
    }

    /// Key blocks of each query block that the mask function keeps as a whole.
    pub fn full_kv(&self) -> Option<&BlockIndex> {
        self.full_kv.as_ref()
    }

    /// Query blocks of each key block, ascending: the transpose of [`kv`](Self::kv).
    pub fn q(&self) -> &BlockIndex {
        &self.q
    }

    /// The transpose of [`full_kv`](Self::full_kv).
    pub fn full_q(&self) -> Option<&BlockIndex> {
        self.full_q.as_ref()
    }

    /// The sparse block.
    pub fn blocks(&self) -> BlockSize {
        self.blocks
    }

    /// Queries in a block.
    pub fn block_q(&self) -> usize {
        self.blocks.q()
    }

    /// Keys in a block.
    pub fn block_kv(&self) -> usize {
        self.blocks.kv()
    }

    /// Number of queries.
    pub fn seq_q(&self) -> usize {
        self.seq_q
    }

    /// Number of keys.
    pub fn seq_kv(&self) -> usize {
        self.seq_kv
    }

    /// The batch size, or 1 for a mask shared by all.
    pub fn batch(&self) -> usize {
        self.kv.counts.shape()[0]
    }

    /// The number of query heads, or 1 for a mask shared by all.
    pub fn heads(&self) -> usize {
        self.kv.counts.shape()[1]
    }

    /// `[batch|1, heads|1, q_blocks, kv_blocks]`.
    pub fn shape(&self) -> [usize; 4] {
        let (q_blocks, kv_blocks) =
            (self.seq_q.div_ceil(self.block_q()), self.seq_kv.div_ceil(self.block_kv()));
        [self.batch(), self.heads(), q_blocks, kv_blocks]
    }

    /// One class per block. Blocks of [`kv`](Self::kv) are [`PARTIAL`](DenseMap::PARTIAL), those of [`full_kv`](Self::full_kv)
    /// [`FULL`](DenseMap::FULL).
    ///
    /// # Errors
    /// A device error when the lists cannot be copied from the GPU, [`MaskError::TooLarge`] where there is no memory for the map.
    pub fn to_dense(&self) -> Result<DenseMap, Error> {
        let shape = self.shape();
        let kv_blocks = shape[3];
        let mut classes = vec![EMPTY; blocks_of(shape, size_of::<u8>())?];
        for (index, class) in [(Some(&self.kv), PARTIAL), (self.full_kv.as_ref(), FULL)] {
            let Some(index) = index else { continue };
            let lists = HostLists::read(index)?;
            for row in 0..lists.counts.len() {
                for &block in lists.row(row) {
                    if block < 0 || block as usize >= kv_blocks {
                        let (heads, rows) = (shape[1], shape[2]);
                        let at = [row / rows / heads, row / rows % heads, row % rows];
                        let what = "kv_indices";
                        return Err(MaskError::Index { what, at, found: block, blocks: kv_blocks }.into());
                    }
                    classes[row * kv_blocks + block as usize] = class;
                }
            }
        }
        Ok(DenseMap { shape, classes })
    }

    /// How many key blocks each query block keeps: `[batch|1, heads|1, q_blocks]`, row-major.
    ///
    /// # Errors
    /// A device error when the counts cannot be copied from the GPU.
    pub fn row_counts(&self) -> Result<Vec<usize>, Error> {
        let counts = |index: &BlockIndex| -> Result<Vec<usize>, Error> {
            Ok(HostLists::read(index)?.counts.into_iter().map(|count| count as usize).collect())
        };
        let mut rows = counts(&self.kv)?;
        if let Some(full) = &self.full_kv {
            for (row, count) in rows.iter_mut().zip(counts(full)?) {
                *row += count;
            }
        }
        Ok(rows)
    }

    /// How many blocks are kept, over the mask's own batch and heads.
    ///
    /// # Errors
    /// As [`row_counts`](Self::row_counts).
    pub fn kept_blocks(&self) -> Result<usize, Error> {
        Ok(self.row_counts()?.iter().sum())
    }

    /// The share of blocks dropped: 0.95 means that one block in twenty is computed. 0 for a mask without blocks.
    ///
    /// # Errors
    /// As [`row_counts`](Self::row_counts).
    pub fn sparsity(&self) -> Result<f64, Error> {
        let total: usize = self.shape().iter().product();
        Ok(1.0 - if total == 0 { 1.0 } else { self.kept_blocks()? as f64 / total as f64 })
    }

    /// Checks that the mask is one for tensors of these sizes; its batch and heads may be 1 instead.
    ///
    /// # Errors
    /// [`MaskError::Fit`] with the first dimension that disagrees.
    pub fn check_fits(
        &self,
        batch: usize,
        heads: usize,
        seq_q: usize,
        seq_kv: usize,
    ) -> Result<(), MaskError> {
        let shared = ", or give it 1 there to share it";
        for (dimension, found, needed, hint) in [
            ("batch", self.batch(), batch, shared),
            ("heads", self.heads(), heads, shared),
            ("seq_q", self.seq_q, seq_q, ""),
            ("seq_kv", self.seq_kv, seq_kv, ""),
        ] {
            let broadcast = !hint.is_empty() && found == 1;
            if found != needed && !broadcast {
                return Err(MaskError::Fit { dimension, found, needed, hint });
            }
        }
        Ok(())
    }
}

impl BlockIndex {
    fn to(&self, device: &Device) -> Result<Self, Error> {
        Ok(BlockIndex { counts: self.counts.to(device)?, indices: self.indices.to(device)? })
    }
}

impl BlockMask {
    /// The same mask with its lists on `device`.
    ///
    /// # Errors
    /// A device error when a copy fails.
    pub fn to(&self, device: &Device) -> Result<Self, Error> {
        let to = |index: &Option<BlockIndex>| index.as_ref().map(|index| index.to(device)).transpose();
        Ok(BlockMask {
            kv: self.kv.to(device)?,
            full_kv: to(&self.full_kv)?,
            q: self.q.to(device)?,
            full_q: to(&self.full_q)?,
            row_order: self.row_order.as_ref().map(|order| order.to(device)).transpose()?,
            dropped: self.dropped.as_ref().map(|dropped| dropped.to(device)).transpose()?,
            ..*self
        })
    }

    /// Checks that the mask is made of the blocks an attention was built for.
    pub(crate) fn check_blocks(&self, needed: BlockSize) -> Result<(), MaskError> {
        if self.blocks == needed {
            return Ok(());
        }
        Err(MaskError::Blocks { found: self.blocks, needed })
    }
}

/// Block lists copied to the host.
pub(crate) struct HostLists {
    /// Blocks in each row, rows in row-major order.
    pub(crate) counts: Vec<i32>,
    indices: Vec<i32>,
    width: usize,
}

impl HostLists {
    pub(crate) fn read(index: &BlockIndex) -> Result<Self, Error> {
        let width = index.indices.shape()[3];
        let lists = HostLists { counts: index.counts.to_vec()?, indices: index.indices.to_vec()?, width };
        let row_shape = index.counts.shape();
        // Lists on a GPU can be written after they were checked.
        if let Some(row) = lists.counts.iter().position(|&count| count < 0 || count as usize > width) {
            let (heads, rows) = (row_shape[1], row_shape[2]);
            let at = [row / rows / heads, row / rows % heads, row % rows];
            return Err(MaskError::Count { what: "kv_counts", at, found: lists.counts[row], width }.into());
        }
        Ok(lists)
    }

    /// The blocks of row `(batch · heads + head) · rows + row`.
    pub(crate) fn row(&self, row: usize) -> &[i32] {
        &self.indices[row * self.width..][..self.counts[row] as usize]
    }
}
