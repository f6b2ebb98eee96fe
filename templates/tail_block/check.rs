//! A schedule against sums on the host: a short last block, a query block that drops nothing, and blocks that are no
//! numbers, which may show in the query blocks that drop them alone.

use super::Args;
use crate::check::{GRID, classes, close, equal, noise, packed};
use crate::launch::{Probe, Verdict};
use crate::mask::EMPTY;
use crate::{DType, Error, Tensor};

/// Keys of a block, and in all: the last block has 5.
const BLOCK: usize = 64;
const KEYS: usize = (GRID[3] - 1) * BLOCK + 5;

/// A key block whose means are no numbers, one of whose values one element is none, and the one query block that drops
/// each.
const NO_NUMBERS: [(usize, usize); 2] = [(9, 40), (10, 41)];

/// Products of split f32 are good to 17 bits, an exponential makes of a score's error a relative one.
const VALUES: f64 = 1e-3;
const LSE: f64 = 1e-4;

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let [_, heads, rows, columns] = GRID;
    let (d, value_d, scale) = (args.q_mean.shape()[3], args.v_mean.shape()[3], args.scale);
    let q_mean = noise(DType::F32, &[1, heads, rows, d], 5)?;
    let mut k = noise(DType::F32, &[1, 1, columns, d], 6)?.to_f32_vec()?;
    let mut v = noise(DType::F32, &[1, 1, columns, value_d], 7)?.to_f32_vec()?;
    let [(_, all), (_, one)] = NO_NUMBERS;
    k[all * d..][..d].fill(f32::NAN);
    v[all * value_d..][..value_d].fill(f32::NAN);
    v[one * value_d + 3] = f32::INFINITY;
    let mut is_dropped: Vec<bool> = classes(false).into_iter().map(|class| class != EMPTY).collect();
    for (row, dropped) in is_dropped.chunks_mut(columns).enumerate() {
        NO_NUMBERS.iter().for_each(|&(of, block)| dropped[block] = row == of);
    }
    let (out, lse) = expected(&q_mean.to_f32_vec()?, [&k, &v], [d, value_d], scale, &is_dropped);
    // Bits past the last block say nothing.
    let words = columns.div_ceil(32);
    let mut bits = packed(is_dropped.into_iter());
    bits.iter_mut().skip(words - 1).step_by(words).for_each(|word| *word |= -1 << (columns % 32));

    let mut tail_out = probe.poisoned(DType::F32, &[1, heads, rows, value_d])?;
    let mut tail_lse = probe.poisoned(DType::F32, &[1, heads, rows])?;
    let on = |values: &[f32], d: usize| -> Result<Tensor, Error> {
        Tensor::from_slice(values, &[1, 1, columns, d])?.to(probe.device())
    };
    let small = Args {
        q_mean: &q_mean.to(probe.device())?,
        k_mean: &on(&k, d)?,
        v_mean: &on(&v, value_d)?,
        dropped: &Tensor::from_slice(&bits, &[1, heads, rows, words])?.to(probe.device())?,
        tail_out: &mut tail_out,
        tail_lse: &mut tail_lse,
        scale,
        seq_kv: KEYS as i32,
        block_kv: BLOCK as i32,
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    let found = (tail_out.to_f32_vec()?, tail_lse.to_f32_vec()?);
    let nothing = |lse: &[f32]| lse.iter().map(|x| *x == f32::NEG_INFINITY).collect::<Vec<_>>();
    let empty = equal("query blocks that drop nothing", &nothing(&found.1), &nothing(&lse));
    let lse = close(&found.1, &lse, LSE).map_err(|wrong| format!("tail_lse: {wrong}"));
    Ok(empty.and(lse).and(close(&found.0, &out, VALUES).map_err(|wrong| format!("tail_out: {wrong}"))))
}

/// The values and the log-sum-exp of every row.
fn expected(
    q: &[f32],
    [k, v]: [&[f32]; 2],
    [d, value_d]: [usize; 2],
    scale: f32,
    is_dropped: &[bool],
) -> (Vec<f32>, Vec<f32>) {
    let (mut out, mut all) = (Vec::new(), Vec::new());
    for (q, is_dropped) in q.chunks(d).zip(is_dropped.chunks(GRID[3])) {
        let score = |block: usize| {
            let k = &k[block * d..][..d];
            let dot: f64 = q.iter().zip(k).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            f64::from(scale) * dot + (BLOCK.min(KEYS - block * BLOCK) as f64).ln()
        };
        let dropped = (0..is_dropped.len()).filter(|&block| is_dropped[block]);
        let scores: Vec<(usize, f64)> = dropped.map(|block| (block, score(block))).collect();
        let top = scores.iter().fold(f64::NEG_INFINITY, |top, (_, score)| top.max(*score));
        let sum: f64 = scores.iter().map(|(_, score)| (score - top).exp()).sum();
        let lse = if scores.is_empty() { f64::NEG_INFINITY } else { top + sum.ln() };
        let value = |column: usize| -> f64 {
            scores
                .iter()
                .map(|&(block, score)| (score - lse).exp() * f64::from(v[block * value_d + column]))
                .sum()
        };
        out.extend((0..value_d).map(|column| value(column) as f32));
        all.push(lse as f32);
    }
    (out, all)
}
