use crate::mask::{BlockMask, BlockSize};
use crate::tune::{Workload, synthetic_mask};

/// What of a mask decides how fast a schedule is: how many blocks it keeps, and how unevenly.
#[derive(Debug)]
struct MaskProfile {
    /// The share of blocks kept, 0 to 1.
    density: f64,
    /// The standard deviation of the rows' lengths over their mean: 0 for rows of one length, as top-k gives; top-p
    /// spreads them.
    spread: f64,
}

impl MaskProfile {
    fn of(mask: &BlockMask) -> Self {
        let rows = mask.row_counts().unwrap();
        let kv_blocks = mask.shape()[3];
        if rows.is_empty() || kv_blocks == 0 {
            return MaskProfile { density: 0.0, spread: 0.0 };
        }
        let count = rows.len() as f64;
        let mean = rows.iter().sum::<usize>() as f64 / count;
        let variance = rows.iter().map(|&row| (row as f64 - mean).powi(2)).sum::<f64>() / count;
        let spread = if mean > 0.0 { variance.sqrt() / mean } else { 0.0 };
        MaskProfile { density: mean / kv_blocks as f64, spread }
    }
}

fn workload(density: f64) -> Workload {
    Workload { batch: 1, heads: 4, seq_q: 8_190, seq_kv: 32_760, density }
}

#[test]
fn density_and_spread_are_as_asked() {
    for (density, spread) in [(0.02, 0.0), (0.05, 0.5), (0.1, 1.0), (0.5, 0.2), (1.0, 0.0)] {
        let mask = synthetic_mask(&workload(density), BlockSize::default(), spread).unwrap();
        let found = MaskProfile::of(&mask);
        assert!((found.density / density - 1.0).abs() < 0.02, "{density}: {found:?}");
        assert!((found.spread - spread).abs() < 0.06 + 0.1 * spread, "{spread}: {found:?}");
    }
}

#[test]
fn the_same_arguments_give_the_same_mask() {
    let mask = || synthetic_mask(&workload(0.05), BlockSize::default(), 0.5).unwrap().to_dense().unwrap();
    assert_eq!(mask(), mask());
}

#[test]
fn every_row_keeps_a_block() {
    let mask = synthetic_mask(&workload(0.0), BlockSize::default(), 2.0).unwrap();
    assert!(mask.row_counts().unwrap().iter().all(|&count| count == 1));
}

#[test]
fn strange_arguments_are_no_panic() {
    for (density, spread) in [(f64::NAN, f64::NAN), (9.0, -1.0), (-1.0, f64::INFINITY), (0.5, 1e9)] {
        synthetic_mask(&workload(density), BlockSize::default(), spread).unwrap();
    }
    for (seq_q, seq_kv) in [(0, 0), (0, 64), (64, 0), (1, 1)] {
        let tiny = Workload { batch: 1, heads: 1, seq_q, seq_kv, density: 0.5 };
        let mask = synthetic_mask(&tiny, BlockSize::default(), 0.5).unwrap();
        MaskProfile::of(&mask);
    }
    for (seq_q, seq_kv) in [(64, usize::MAX), (2_000_000_000, 2_000_000_000), (2_000_000_000, 1_000_000)] {
        let long = Workload { seq_q, seq_kv, ..workload(0.1) };
        assert!(synthetic_mask(&long, BlockSize::default(), 0.0).is_err());
    }
}
