//! A schedule against sums on the host: runs of several blocks, of which the last is short, with the blocks' own means and without.

use super::Args;
use crate::DType;
use crate::check::{SUMS, close, noise};
use crate::launch::{Probe, Verdict};

/// Key blocks, keys of a block and in all: the last block has 5.
const BLOCKS: usize = 75;
const BLOCK: usize = 64;
const KEYS: usize = (BLOCKS - 1) * BLOCK + 5;
const PARTS: usize = 3;

pub(super) fn check(_: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    // Blocks of a run, and entries.
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
    let parts = |d, seed| noise(dtype, &[1, 2, PARTS * entries, d], seed);
    let (dk_parts, dv_parts) = (parts(d, 5)?, parts(value_d, 6)?);
    let mut dk_mean = probe.poisoned(DType::F32, &[1, 2, BLOCKS, d])?;
    let mut dv_mean = probe.poisoned(DType::F32, &[1, 2, BLOCKS, value_d])?;
    let small = Args {
        dk_parts: &dk_parts.to(probe.device())?,
        dv_parts: &dv_parts.to(probe.device())?,
        dk_mean: &mut dk_mean,
        dv_mean: &mut dv_mean,
        entries: entries as i32,
        seq_kv: KEYS as i32,
        block_kv: BLOCK as i32,
        run: run as i32,
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    let k = compare(&dk_mean.to_f32_vec()?, &dk_parts.to_f32_vec()?, (d, run, entries));
    Ok(k.and(compare(&dv_mean.to_f32_vec()?, &dv_parts.to_f32_vec()?, (value_d, run, entries))))
}

fn compare(found: &[f32], parts: &[f32], (d, run, entries): (usize, usize, usize)) -> Result<(), String> {
    let keys = |block: usize| BLOCK.min(KEYS - block * BLOCK) as f32;
    let section = BLOCKS.div_ceil(run).next_multiple_of(64);
    let mut expected = Vec::new();
    for head in parts.chunks(PARTS * entries * d) {
        for block in 0..BLOCKS {
            let first = block / run * run;
            let of_run: f32 = (first..(first + run).min(BLOCKS)).map(keys).sum();
            let given = [(block / run, of_run), (section + block, keys(block))];
            let given = given.into_iter().filter(|(entry, _)| *entry < entries);
            for column in 0..d {
                let of_entry = |entry: usize| -> f32 {
                    (0..PARTS).map(|part| head[(part * entries + entry) * d + column]).sum()
                };
                expected.push(given.clone().map(|(entry, keys)| of_entry(entry) / keys).sum::<f32>());
            }
        }
    }
    close(found, &expected, SUMS)
}
