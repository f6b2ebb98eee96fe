//! A schedule against sums on the host: runs of one block and of several, of which the last is short, with the blocks'
//! own means and without, and widths of several rounds of a warp.

use super::Args;
use crate::DType;
use crate::check::{OUT, close, equal, noise};
use crate::launch::{Probe, Verdict};

/// Key blocks, keys of a block and in all: the last block has 5.
const BLOCKS: usize = 75;
const BLOCK: usize = 64;
const KEYS: usize = (BLOCKS - 1) * BLOCK + 5;

pub(super) fn check(_: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    // Blocks of a run, and entries: a section of runs alone; with the blocks' own means, and some to fill up; two
    // sections of runs.
    for (run, entries) in [(4, 64), (4, 192), (1, 128)] {
        let verdict = case(probe, run, entries)?;
        if verdict.is_err() {
            return Ok(verdict);
        }
    }
    Ok(Ok(()))
}

fn case(probe: &Probe<'_>, run: usize, entries: usize) -> Verdict {
    let (dtype, [d, value_d]) = (probe.dtype("T")?, [72, 320]);
    let means = |d, seed| noise(DType::F32, &[1, 2, BLOCKS, d], seed);
    let (k_mean, v_mean) = (means(d, 5)?, means(value_d, 6)?);
    let mut tail_k = probe.poisoned(dtype, &[1, 2, entries, d])?;
    let mut tail_v = probe.poisoned(dtype, &[1, 2, entries, value_d])?;
    let small = Args {
        k_mean: &k_mean.to(probe.device())?,
        v_mean: &v_mean.to(probe.device())?,
        tail_k: &mut tail_k,
        tail_v: &mut tail_v,
        seq_kv: KEYS as i32,
        block_kv: BLOCK as i32,
        run: run as i32,
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    let k = compare(&tail_k.to_f32_vec()?, &k_mean.to_f32_vec()?, (d, run, entries));
    Ok(k.and(compare(&tail_v.to_f32_vec()?, &v_mean.to_f32_vec()?, (value_d, run, entries))))
}

fn compare(found: &[f32], means: &[f32], (d, run, entries): (usize, usize, usize)) -> Result<(), String> {
    let runs = BLOCKS.div_ceil(run);
    let section = runs.next_multiple_of(64);
    let blocks_of = |entry: usize| match entry {
        _ if entry < runs => entry * run..(entry * run + run).min(BLOCKS),
        _ if (section..section + BLOCKS).contains(&entry) => entry - section..entry - section + 1,
        _ => 0..0,
    };
    let keys = |block: usize| BLOCK.min(KEYS - block * BLOCK) as f32;
    let mut expected = Vec::new();
    for means in means.chunks(BLOCKS * d) {
        for entry in 0..entries {
            let all: f32 = blocks_of(entry).map(keys).sum();
            let mean = |column: usize| {
                blocks_of(entry).map(|block| keys(block) / all * means[block * d + column]).sum::<f32>()
            };
            expected.extend((0..d).map(mean));
        }
    }
    let zeros = |x: &[f32]| x.chunks(d).map(|row| row.iter().all(|&x| x == 0.0)).collect::<Vec<_>>();
    close(found, &expected, OUT).and(equal("entries of 0", &zeros(found), &zeros(&expected)))
}
