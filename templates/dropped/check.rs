//! A schedule against the host: of every pair of kept maps, with classes and without, and with bits past the last
//! block.

use super::Args;
use crate::check::{GRID, classes, equal, noise};
use crate::launch::{Probe, Verdict};
use crate::mask::FULL;
use crate::{DType, Error, Tensor};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let (words, columns) = (GRID[3].div_ceil(32), GRID[3]);
    let shape = [GRID[0], GRID[1], GRID[2], words];
    // Words of any bits, those past the last block among them.
    let bits = |seed| -> Result<Vec<i32>, Error> {
        let noise = noise(DType::F32, &shape, seed)?.to_f32_vec()?;
        let mixed = noise.into_iter().map(|x| x.to_bits().wrapping_mul(0x9E37_79B1));
        Ok(mixed.map(|bits| (bits ^ (bits >> 15)) as i32).collect())
    };
    let (keep, full_keep) = (bits(1)?, bits(2)?);
    let map = classes(true);
    let (split, by_class) = (args.full_keep.is_some(), args.classes.is_some());
    let is_dropped = |row: usize, block: usize| {
        let bit = |bits: &[i32]| bits[row * words + block / 32] >> (block % 32) & 1 == 1;
        let kept = bit(&keep) || split && bit(&full_keep);
        !kept && (!by_class || map[row * columns + block] == FULL)
    };
    let word = |at: usize| {
        let blocks = at % words * 32..(at % words * 32 + 32).min(columns);
        blocks.fold(0, |word, block| word | i32::from(is_dropped(at / words, block)) << (block % 32))
    };
    let expected: Vec<i32> = (0..keep.len()).map(word).collect();
    let on = |bits: &[i32]| Tensor::from_slice(bits, &shape)?.to(probe.device());
    let mut dropped = probe.poisoned(DType::I32, &shape)?;
    let small = Args {
        keep: &on(&keep)?,
        full_keep: if split { Some(&on(&full_keep)?) } else { None },
        classes: if by_class { Some(&Tensor::from_slice(&map, &GRID)?.to(probe.device())?) } else { None },
        dropped: &mut dropped,
        blocks: columns as i32,
    };
    // SAFETY: bits may be any.
    unsafe { probe.launch(&small)? };
    Ok(equal("bits", &dropped.to_vec::<i32>()?, &expected))
}
