//! A schedule against the rows of a tail: runs of one block and of several, of which the last is short, with the
//! blocks' own entries and without, and bits past the last block.

use super::Args;
use crate::check::{GRID, SUMS, classes, close, equal, packed};
use crate::launch::{Probe, Verdict};
use crate::mask::{FULL, PARTIAL};
use crate::tail::Row;
use crate::{DType, Error, Tensor};

/// Keys of a block, and in all: the last block has 5.
const BLOCK: usize = 64;
const KEYS: usize = (GRID[3] - 1) * BLOCK + 5;

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    // Blocks of a run, and entries: with the blocks' own, in whole and in part; of runs alone; of more than 32 pieces.
    for (run, entries) in [(4, 139), (2, 107), (8, 64), (1, 128), (4, 2200)] {
        let verdict = case(probe, run, entries, args.whole.is_some())?;
        if verdict.is_err() {
            return Ok(verdict);
        }
    }
    Ok(Ok(()))
}

fn case(probe: &Probe<'_>, run: usize, entries: usize, with_whole: bool) -> Verdict {
    let [batch, heads, rows, columns] = GRID;
    let (words, pieces) = (columns.div_ceil(32), entries.div_ceil(64));
    let classes = classes(true);
    // The first head has whole runs: nothing of it is forbidden.
    let of_first = |at: usize| at < rows * columns;
    let map = |is: &dyn Fn(usize, u8) -> bool| -> Vec<bool> {
        classes.iter().enumerate().map(|(at, &class)| is(at, class)).collect()
    };
    let is_dropped = map(&|_, class| class == FULL);
    let is_whole = map(&|at, class| class == PARTIAL || of_first(at) && class != FULL);

    let (mut weights, mut bits) = (Vec::new(), Vec::new());
    for (dropped, whole) in is_dropped.chunks(columns).zip(is_whole.chunks(columns)) {
        let whole: Vec<bool> =
            dropped.iter().zip(whole).map(|(&dropped, &whole)| !with_whole || dropped || whole).collect();
        let row = Row { is_dropped: dropped, is_whole: &whole, run, block: BLOCK, seq_kv: KEYS };
        let keys = keys(&row, entries);
        weights.extend(keys.iter().map(|&keys| (keys as f32).ln()));
        let any: Vec<bool> = keys.chunks(64).map(|keys| keys.iter().any(|&keys| keys > 0)).collect();
        let word =
            |any: &[bool]| any.iter().enumerate().fold(0, |word, (bit, &any)| word | i32::from(any) << bit);
        bits.extend(any.chunks(32).map(word));
    }

    // Bits past the last block say nothing.
    let on = |map: Vec<bool>| -> Result<Tensor, Error> {
        let mut bits = packed(map.into_iter());
        bits.iter_mut().skip(words - 1).step_by(words).for_each(|word| *word |= -1 << (columns % 32));
        Tensor::from_slice(&bits, &[batch, heads, rows, words])?.to(probe.device())
    };
    let mut found = probe.poisoned(DType::F32, &[batch, heads, rows, entries])?;
    let mut found_pieces = probe.poisoned(DType::I32, &[batch, heads, rows, pieces.div_ceil(32)])?;
    let small = Args {
        dropped: &on(is_dropped)?,
        whole: if with_whole { Some(&on(is_whole)?) } else { None },
        weights: &mut found,
        pieces: &mut found_pieces,
        blocks: columns as i32,
        seq_kv: KEYS as i32,
        block_kv: BLOCK as i32,
        run: run as i32,
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    let found = found.to_f32_vec()?;
    let nothing = |weights: &[f32]| weights.iter().map(|x| *x == f32::NEG_INFINITY).collect::<Vec<_>>();
    let none = equal("entries without keys", &nothing(&found), &nothing(&weights));
    let pieces = equal("bits of pieces", &found_pieces.to_vec::<i32>()?, &bits);
    Ok(none.and(pieces).and(close(&found, &weights, SUMS)))
}

/// Keys that each entry stands for: runs, filled up to a multiple of 64, and single blocks.
fn keys(row: &Row<'_>, entries: usize) -> Vec<usize> {
    let section = row.is_dropped.len().div_ceil(row.run).next_multiple_of(64);
    let mut keys = vec![0; entries.max(section + row.is_dropped.len())];
    for mean in row.means() {
        // A run of one block has a mean of its run.
        let is_run =
            row.is_whole[mean.of.start / row.run * row.run..].iter().take(row.run).all(|&whole| whole);
        keys[if is_run { mean.of.start / row.run } else { section + mean.of.start }] = mean.keys;
    }
    keys.truncate(entries);
    keys
}
