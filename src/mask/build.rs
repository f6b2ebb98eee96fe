//! Block masks from a class per block.

use super::{
    BlockIndex, BlockMask, BlockSize, EMPTY, FULL, MOST_POSITIONS, MaskError, PARTIAL, SeqLens, blocks_of,
    bytes_of_lists, classify,
};
use crate::{Error, MaskMod, Tensor, room};

impl BlockMask {
    /// A mask from a map of the blocks to keep, `[batch|1, heads|1, q_blocks, kv_blocks]` row-major.
    ///
    /// A mask function given to the attention is applied to every element of the kept blocks.
    ///
    /// # Errors
    /// [`MaskError::TooLong`], [`MaskError::Grid`], [`MaskError::MapLength`] or [`MaskError::TooLarge`].
    pub fn from_dense(
        map: &[bool],
        shape: [usize; 4],
        blocks: BlockSize,
        seqs: SeqLens,
    ) -> Result<Self, Error> {
        let seqs = seqs.pair();
        check_grid(map.len(), shape, blocks, seqs)?;
        let classes: Vec<u8> = map.iter().map(|&keep| if keep { PARTIAL } else { EMPTY }).collect();
        Self::from_checked(&classes, shape, blocks, seqs, false)
    }

    /// A mask from a class per block, as a [`DenseMap`](super::DenseMap) has them: `EMPTY`, `PARTIAL` (the mask function is applied
    /// to each element) or `FULL` (it is not, for it keeps them all). Shapes as in [`from_dense`](Self::from_dense).
    ///
    /// # Errors
    /// As [`from_dense`](Self::from_dense), and [`MaskError::Class`] for a class above 2.
    pub fn from_classes(
        classes: &[u8],
        shape: [usize; 4],
        blocks: BlockSize,
        seqs: SeqLens,
    ) -> Result<Self, Error> {
        let seqs = seqs.pair();
        check_grid(classes.len(), shape, blocks, seqs)?;
        if let Some(flat) = classes.iter().position(|&class| class > FULL) {
            let [_, heads, rows, columns] = shape;
            let (row, head) = (flat / columns, flat / columns / rows);
            let at = [head / heads, head % heads, row % rows, flat % columns];
            return Err(MaskError::Class { at, found: classes[flat] }.into());
        }
        Self::from_checked(classes, shape, blocks, seqs, true)
    }

    /// A mask that keeps every block: dense attention.
    ///
    /// # Errors
    /// [`MaskError::TooLong`], or [`MaskError::TooLarge`] where there is no memory for the lists.
    pub fn full(batch: usize, heads: usize, blocks: BlockSize, seqs: SeqLens) -> Result<Self, Error> {
        let seqs = seqs.pair();
        let shape = grid(batch, heads, blocks, seqs)?;
        let classes = vec![PARTIAL; blocks_of(shape, bytes_of_lists(false))?];
        Self::from_checked(&classes, shape, blocks, seqs, false)
    }

    /// The mask of every block in which `function` keeps an element, classified on the CPU.
    ///
    /// `batch` and `heads` may be 1 where the function does not look at `b` or `h`: that saves the time of the others.
    /// The function is called for each element until a block is known to be partial.
    ///
    /// # Errors
    /// As [`full`](Self::full); [`Error::DeviceFunction`] when the function panics.
    pub fn from_mask_mod(
        function: &dyn MaskMod,
        batch: usize,
        heads: usize,
        blocks: BlockSize,
        seqs: SeqLens,
    ) -> Result<Self, Error> {
        let seqs = seqs.pair();
        let shape = grid(batch, heads, blocks, seqs)?;
        // Before the function is asked about every element.
        blocks_of(shape, bytes_of_lists(true))?;
        let classes = classify(function, shape, blocks, seqs)?;
        Self::from_checked(&classes, shape, blocks, seqs, true)
    }

    /// Builds the four lists of classes known to fit; `split` lists full blocks apart.
    pub(crate) fn from_checked(
        classes: &[u8],
        shape: [usize; 4],
        blocks: BlockSize,
        seqs: (usize, usize),
        split: bool,
    ) -> Result<Self, Error> {
        blocks_of(shape, bytes_of_lists(split))?;
        let of = |class| move |found: u8| found == class;
        let full = |transposed| split.then(|| list(classes, shape, transposed, of(FULL))).transpose();
        let kv = (list(classes, shape, false, of(PARTIAL))?, full(false)?);
        let q = (list(classes, shape, true, of(PARTIAL))?, full(true)?);
        let kept = classes.iter().filter(|&&class| class != EMPTY).count();
        let density = Some(if classes.is_empty() { 0.0 } else { kept as f64 / classes.len() as f64 });
        let row_order = longest_first(classes, shape)?;
        Ok(BlockMask { density, row_order, ..Self::from_parts(blocks, seqs, kv, q) })
    }
}

/// The rows of each head by falling number of blocks, i32 `[batch, heads, rows]`; none where all rows are as long.
fn longest_first(classes: &[u8], [batch, heads, rows, columns]: [usize; 4]) -> Result<Option<Tensor>, Error> {
    let length = |row: &[u8]| row.iter().filter(|&&class| class != EMPTY).count();
    let lengths: Vec<usize> = classes.chunks(columns.max(1)).map(length).collect();
    if lengths.windows(2).all(|pair| pair[0] == pair[1]) {
        return Ok(None);
    }
    let mut order = Vec::with_capacity(lengths.len());
    for lengths in lengths.chunks(rows) {
        let mut head: Vec<i32> = (0..rows as i32).collect();
        head.sort_by_key(|&row| std::cmp::Reverse(lengths[row as usize]));
        order.append(&mut head);
    }
    Ok(Some(Tensor::from_slice(&order, &[batch, heads, rows])?))
}

/// The shape of the class map of these sizes.
pub(crate) fn grid(
    batch: usize,
    heads: usize,
    blocks: BlockSize,
    (seq_q, seq_kv): (usize, usize),
) -> Result<[usize; 4], MaskError> {
    if let Some(found) = [seq_q, seq_kv].into_iter().find(|&seq| seq > MOST_POSITIONS) {
        return Err(MaskError::TooLong { found });
    }
    Ok([batch, heads, seq_q.div_ceil(blocks.q()), seq_kv.div_ceil(blocks.kv())])
}

fn check_grid(
    found: usize,
    shape: [usize; 4],
    blocks: BlockSize,
    seqs: (usize, usize),
) -> Result<(), MaskError> {
    let [batch, heads, q_blocks, kv_blocks] = shape;
    grid(batch, heads, blocks, seqs)?;
    blocks.check_grid([q_blocks, kv_blocks], seqs)?;
    let needed = room::product(&shape).unwrap_or(usize::MAX);
    if found == needed { Ok(()) } else { Err(MaskError::MapLength { found, needed, shape }) }
}

/// Lists, row by row (or column by column), the blocks whose class is `wanted`, ascending; unused entries are 0.
pub(super) fn list(
    classes: &[u8],
    [batch, heads, rows, columns]: [usize; 4],
    transposed: bool,
    wanted: impl Fn(u8) -> bool,
) -> Result<BlockIndex, Error> {
    let (lists, width) = if transposed { (columns, rows) } else { (rows, columns) };
    let mut counts = vec![0i32; batch * heads * lists];
    let mut indices = vec![0i32; batch * heads * lists * width];
    for (block, _) in classes.iter().enumerate().filter(|&(_, &class)| wanted(class)) {
        let (head, row, column) = (block / columns / rows, block / columns % rows, block % columns);
        let (owner, listed) = if transposed { (column, row) } else { (row, column) };
        let owner = head * lists + owner;
        indices[owner * width + counts[owner] as usize] = listed as i32;
        counts[owner] += 1;
    }
    Ok(BlockIndex {
        counts: Tensor::from_slice(&counts, &[batch, heads, lists])?,
        indices: Tensor::from_slice(&indices, &[batch, heads, lists, width])?,
    })
}
