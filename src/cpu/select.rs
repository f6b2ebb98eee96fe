//! Step 3: the blocks a row keeps.

use crate::Selection;
use std::collections::BinaryHeap;

/// Marks in `keep` the blocks that `selection` keeps of one row of sanitised `logits` (no NaN).
///
/// Probabilities are summed in fixed point, `round(P̄ · 2³⁰)`, so that the mass of a prefix does not depend on the order
/// of summation and the GPU finds the same threshold. The heap costs O(n) and O(log n) for each block kept.
pub fn select_row(
    logits: &[f32],
    admissible: impl Fn(usize) -> bool,
    selection: &Selection,
    keep: &mut [bool],
) {
    keep.fill(false);
    let blocks: Vec<usize> = (0..logits.len()).filter(|&j| admissible(j)).collect();
    let max = blocks.iter().map(|&j| logits[j]).fold(f32::NEG_INFINITY, f32::max);
    let weight = |j: usize| if max == f32::NEG_INFINITY { 0.0 } else { (logits[j] - max).exp() };
    let sum: f32 = blocks.iter().map(|&j| weight(j)).sum();
    let probability = |j: usize| if sum > 0.0 { weight(j) / sum } else { 0.0 };
    // The bits of non-negative floats are ordered as the floats are; the complement puts lower indices first.
    let mut order: BinaryHeap<(u32, u32)> =
        blocks.iter().map(|&j| (probability(j).to_bits(), !(j as u32))).collect();

    let total: u64 = order.iter().map(|&(bits, _)| mass(bits)).sum();
    let least = least_count(selection.k_f32(), order.len());
    let p = selection.p_f32();
    let target = if p >= 1.0 { u64::MAX } else { (f64::from(p) * total as f64).ceil() as u64 };
    let (mut count, mut reached) = (0, 0);
    while count < least || reached < target {
        let Some((bits, complement)) = order.pop() else { break };
        keep[!complement as usize] = true;
        count += 1;
        reached += mass(bits);
    }
}

/// A probability in fixed point.
fn mass(bits: u32) -> u64 {
    (f32::from_bits(bits) * (1u32 << 30) as f32).round_ties_even() as u64
}

/// `max(1, ceil(k · n))`, where a product within one part in a million above an integer counts as that integer:
/// 0.05 · 60 is 3 blocks, although 0.05 rounds up in f32.
fn least_count(k: f32, n: usize) -> usize {
    let product = k * n as f32;
    ((product - product * 1e-6).ceil() as usize).clamp(1, n.max(1)).min(n)
}
