//! A schedule against the host on a few blocks of the call's mask function.

use super::Args;
use crate::check::{Subject, equal};
use crate::launch::{Probe, Verdict};
use crate::{BlockSize, DType};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let Some(mask_mod) = probe.mask_mod() else { return Ok(Ok(())) };
    let subject = Subject {
        dtype: DType::Bf16,
        head_dim: 64,
        value_dim: 64,
        blocks: BlockSize::new(probe.int("BLOCK_Q")?, probe.int("BLOCK_KV")?)?,
        scale: 1.0,
        score_mod: None,
        mask_mod: Some(mask_mod),
        call: [args.classes.shape()[1], args.seq_q as usize, args.seq_kv as usize],
    };
    let [heads, queries, keys] = subject.extents();
    let blocks = subject.blocks;
    let grid = [1, heads, queries.div_ceil(blocks.q()), keys.div_ceil(blocks.kv())];
    let expected = crate::mask::classify(mask_mod, grid, blocks, (queries, keys))?;
    let mut classes = probe.poisoned(DType::U8, &grid)?;
    let small = Args { classes: &mut classes, seq_q: queries as i32, seq_kv: keys as i32 };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { probe.launch(&small)? };
    Ok(equal("classes", &classes.to_vec::<u8>()?, &expected))
}
