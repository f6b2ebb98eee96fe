//! The analytic model: limits of a GPU at hand, occupancy, waves, bytes in flight.

mod support;

use std::sync::Arc;
use support::{BODY, DECLARATION, source};
use tilewright_codegen::{Arch, Candidate, DType, Generator, Limits, Machine, Reason};

/// 4 or 8 warps; `clauses` go into `where`.
fn generator(clauses: &str) -> Generator {
    let text = DECLARATION.replace("smem_bytes = 4 * BLOCK * WARPS", clauses);
    Generator::new(&source(&text, BODY)).unwrap()
}

fn accepted(generator: &Generator, limits: &Limits) -> Vec<Candidate> {
    let spec = generator.spec(&[("T", DType::F16.into()), ("BLOCK", 64.into())]).unwrap();
    generator.candidates_within(&Arc::new(spec), Arch::Sm80, limits).unwrap().accepted
}

/// The warps of the candidates in the model's order.
fn order(clauses: &str, sm_count: i64, dims: &[(&str, i64)]) -> Vec<i64> {
    let generator = generator(clauses);
    let limits = Arch::Sm80.limits();
    let accepted = accepted(&generator, &limits);
    let candidates: Vec<&Candidate> = accepted.iter().collect();
    let places = generator.rank(&candidates, &Machine { limits, sm_count }, dims);
    places.into_iter().map(|place| candidates[place].constant("WARPS").unwrap()).collect()
}

/// A grid of `rows` blocks.
fn rows(rows: i64) -> [(&'static str, i64); 2] {
    [("rows", rows), ("columns", 64)]
}

#[test]
fn equals_keep_the_order_of_the_declaration() {
    assert_eq!(order("smem_bytes = 0, registers = 32", 100, &[]), [4, 8]);
}

#[test]
fn the_declaration_says_how_occupancy_counts() {
    // 64 KiB for 4 warps, 128 KiB for 8: two blocks of the first fit, one of the second.
    let smem = "smem_bytes = 16384 * WARPS, registers = 32";
    assert_eq!(order(&format!("{smem}, prefer = CTAS_PER_SM"), 100, &rows(10_000)), [4, 8]);
    assert_eq!(order(&format!("{smem}, prefer = 0 - CTAS_PER_SM"), 100, &rows(10_000)), [8, 4]);
    // A grid of one block a multiprocessor gains nothing from room for two; then bytes in flight decide.
    let capped = format!("{smem}, prefer = min(CTAS_PER_SM, GRID_PER_SM)");
    assert_eq!(order(&capped, 100, &rows(100)), [8, 4]);
    assert_eq!(order(&capped, 100, &rows(10_000)), [4, 8]);
    // Without a grid it counts as a large one.
    assert_eq!(order(&capped, 100, &[]), [4, 8]);
}

#[test]
fn a_fuller_last_wave_comes_first() {
    let smem = "smem_bytes = 16384 * WARPS, registers = 32";
    // 101 blocks: one wave of 200 places, or two of 100. Both are half empty; 300 blocks fill three waves of 100.
    assert_eq!(order(smem, 100, &rows(300)), [8, 4]);
    assert_eq!(order(smem, 100, &rows(400)), [4, 8]);
}

#[test]
fn a_gpu_with_less_than_its_architecture_prunes_more() {
    let generator = generator("smem_bytes = 16384 * WARPS, registers = 32");
    let limits = Limits { smem_per_block: 100_000, ..Arch::Sm80.limits() };
    let warps: Vec<_> = accepted(&generator, &limits).iter().map(|c| c.constant("WARPS")).collect();
    assert_eq!(warps, [Some(4)]);
    let limits = Limits { threads_per_block: 128, ..Arch::Sm80.limits() };
    assert_eq!(accepted(&generator, &limits).len(), 1);
}

#[test]
fn a_candidate_left_out_says_why() {
    let reason = Reason::Ranked { place: 17, compiled: 16 };
    assert_eq!(reason.to_string(), "the model's number 17: the first 16 are compiled");
}

/// Grids that no GPU has are ranked like any: the launch refuses them.
#[test]
fn the_largest_grids_are_ranked() {
    let smem = "smem_bytes = 16384 * WARPS, registers = 32, prefer = min(CTAS_PER_SM, GRID_PER_SM)";
    for largest in [i64::MAX, i64::MAX / 2, i64::MAX / 20 + 1, i64::MIN, -1, 0] {
        for sm_count in [1, 132, i64::MAX] {
            for dims in [rows(largest), [("rows", largest), ("columns", i64::MAX)]] {
                let mut warps = order(smem, sm_count, &dims);
                warps.sort_unstable();
                assert_eq!(warps, [4, 8]);
            }
        }
    }
}
