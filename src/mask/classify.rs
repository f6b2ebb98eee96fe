//! Empty, partial and full blocks of a mask function.

use super::{BlockSize, EMPTY, FULL, PARTIAL, blocks_of};
use crate::user_code::UserCode;
use crate::{Error, MaskMod};
use rayon::prelude::*;
use std::ops::Range;

/// The class of every block of `shape = [batch, heads, q_blocks, kv_blocks]`, over the elements that exist.
pub(crate) fn classify(
    function: &dyn MaskMod,
    shape: [usize; 4],
    blocks: BlockSize,
    (seq_q, seq_kv): (usize, usize),
) -> Result<Vec<u8>, Error> {
    let [_, heads, q_blocks, kv_blocks] = shape;
    let mut classes = vec![EMPTY; blocks_of(shape, size_of::<u8>())?];
    if classes.is_empty() {
        return Ok(classes);
    }
    let code = UserCode::new([function.name(), ""]);
    code.run(|| {
        classes.par_chunks_mut(kv_blocks).enumerate().for_each(|(row, classes)| {
            if code.is_interrupted() {
                return;
            }
            let (head, i) = (row / q_blocks, row % q_blocks);
            let (b, h) = ((head / heads) as i32, (head % heads) as i32);
            let queries = span(i, blocks.q(), seq_q);
            let inside = code.inside();
            inside.calls(0);
            for (j, class) in classes.iter_mut().enumerate() {
                let keys = span(j, blocks.kv(), seq_kv);
                *class = class_of(queries.clone(), keys, |q, kv| function.keep(b, h, q, kv));
            }
        });
    })?;
    Ok(classes)
}

/// The positions of a block of a sequence.
pub(crate) fn span(block: usize, size: usize, seq: usize) -> Range<i32> {
    (block * size) as i32..((block + 1) * size).min(seq) as i32
}

/// The class of one block; a partial one is known at the first element that differs from the first.
fn class_of(queries: Range<i32>, keys: Range<i32>, keep: impl Fn(i32, i32) -> bool) -> u8 {
    let first = keep(queries.start, keys.start);
    // Opposite corners tell most partial blocks of causal and windowed masks at once.
    if keep(queries.end - 1, keys.start) != first || keep(queries.start, keys.end - 1) != first {
        return PARTIAL;
    }
    for q in queries {
        for kv in keys.clone() {
            if keep(q, kv) != first {
                return PARTIAL;
            }
        }
    }
    if first { FULL } else { EMPTY }
}
