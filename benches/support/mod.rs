//! Data of the benchmarks: the same on every run.

use half::bf16;
use rayon::prelude::*;

/// The generator's next state; its upper half is the random part.
fn step(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state
}

/// About normal.
pub fn random(count: usize, seed: u64) -> Vec<bf16> {
    let mut data = vec![bf16::ZERO; count];
    data.par_chunks_mut(1 << 16).enumerate().for_each(|(chunk, data)| {
        let mut state = (seed << 40) ^ (chunk as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for value in data {
            // The sum of four bytes: variance 4 · 256² / 12.
            let bytes = (step(&mut state) >> 32).to_le_bytes();
            let sum: u32 = bytes[..4].iter().map(|&byte| u32::from(byte)).sum();
            *value = bf16::from_f32((sum as f32 - 510.0) / 147.8);
        }
    });
    data
}

/// Sets `count` different places of a row that has none set, with as many draws (Floyd's sampling).
pub fn draw(row: &mut [bool], count: usize, state: &mut u64) {
    for last in row.len() - count..row.len() {
        let drawn = (step(state) >> 33) as usize % (last + 1);
        let place = if row[drawn] { last } else { drawn };
        row[place] = true;
    }
}
