//! Masks to tune with when the user's own are not at hand.

use super::Workload;
use crate::Error;
use crate::mask::{BlockMask, BlockSize, SeqLens, blocks_of, bytes_of_lists, grid};

/// A mask of `workload`'s sizes and density whose rows' lengths spread as asked. The same arguments give the same
/// mask every time.
///
/// Every row keeps a block at least. Which blocks is random, evenly over the row: the hardest case for the caches,
/// and one that favours no schedule. A density or a spread that is no number counts as 1 or 0. Rows cannot be longer than
/// the sequence, so dense masks spread less than asked.
///
/// # Errors
/// As [`BlockMask::from_dense`].
pub fn synthetic_mask(workload: &Workload, blocks: BlockSize, spread: f64) -> Result<BlockMask, Error> {
    let Workload { batch, heads, seq_q, seq_kv, .. } = *workload;
    let shape = grid(batch, heads, blocks, (seq_q, seq_kv))?;
    let kv_blocks = shape[3];
    // A map of its own beside what becomes of it.
    let blocks_in_all = blocks_of(shape, size_of::<bool>() + bytes_of_lists(false))?;
    let rows = batch * heads * shape[2];
    let mut random = SplitMix(0x7469_6c65_7772_6967);
    let lengths = row_lengths(&mut random, rows, kv_blocks, workload.density, spread);
    let mut map = Vec::with_capacity(blocks_in_all);
    for length in lengths {
        // Each block in turn is kept with the share that is still needed of those that are left.
        let mut needed = length;
        for left in (1..=kv_blocks).rev() {
            let keep = (random.uniform() * left as f64) < needed as f64;
            needed -= usize::from(keep);
            map.push(keep);
        }
    }
    BlockMask::from_dense(&map, shape, blocks, SeqLens { q: seq_q, kv: seq_kv })
}

/// Lengths whose mean is that of the density, as far as whole numbers between 1 and `kv_blocks` allow.
fn row_lengths(
    random: &mut SplitMix,
    rows: usize,
    kv_blocks: usize,
    density: f64,
    spread: f64,
) -> Vec<usize> {
    if kv_blocks == 0 {
        return vec![0; rows];
    }
    let density = if density.is_nan() { 1.0 } else { density.clamp(0.0, 1.0) };
    let spread = if spread.is_finite() { spread.max(0.0) } else { 0.0 };
    let (longest, mean) = (kv_blocks as f64, density * kv_blocks as f64);
    // A logarithmic normal distribution: never negative, and long rows are longer than short rows are short.
    let sigma = (1.0 + spread * spread).ln().sqrt();
    let drawn: Vec<f64> = (0..rows).map(|_| (sigma * random.normal()).exp()).collect();
    let total = |scale: f64| drawn.iter().map(|x| (x * scale).clamp(1.0, longest)).sum::<f64>();
    // The scale at which the clamped lengths have the mean: found by halving, as their sum only grows with it.
    let (mut low, mut high) = (0.0, longest * 64.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if total(middle) < mean * rows as f64 { low = middle } else { high = middle }
    }
    // What rounding takes from one row goes to the next.
    let mut carry = 0.0;
    let whole = |x: f64| {
        let wanted = (x * high).clamp(1.0, longest) + carry;
        let length = wanted.round().clamp(1.0, longest);
        carry = wanted - length;
        length as usize
    };
    drawn.into_iter().map(whole).collect()
}

/// A generator of 64-bit numbers (Steele, Lea and Flood 2014): the same on every machine.
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0, below 1.
    pub(super) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A normal variate, near enough: the sum of twelve uniform ones, which needs no logarithm of zero.
    pub(super) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}
