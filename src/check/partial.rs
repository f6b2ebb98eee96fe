//! Blocks that a mask function keeps in part.

use super::{Subject, noise};
use crate::mask::{EMPTY, FULL, PARTIAL};
use crate::user_code::UserCode;
use crate::{Error, MaskMod, Tensor, cpu};

/// Blocks to score by the keys that a function keeps.
pub(crate) struct PartialCase {
    pub(crate) seq_q: usize,
    pub(crate) q_mean: Tensor,
    pub(crate) k: Tensor,
    pub(crate) k_mean: Tensor,
    pub(crate) classes: Tensor,
    /// What is there before, and stays where a block is not partial.
    pub(crate) before: Tensor,
    pub(crate) expected: Vec<f32>,
}

impl PartialCase {
    /// Most blocks are said to be partial, whatever the function makes of them: on so few positions it may keep all of each, or
    /// nothing, and there would be nothing to see.
    pub(crate) fn new(subject: &Subject<'_>, mask_mod: &dyn MaskMod, by_keys: bool) -> Result<Self, Error> {
        let (d, blocks, scale) = (subject.head_dim, subject.blocks, subject.scale);
        let [heads, queries, keys] = subject.extents();
        let (rows, columns) = (queries.div_ceil(blocks.q()), keys.div_ceil(blocks.kv()));
        let map = [1, heads, rows, columns];
        let k = noise(subject.dtype, &[1, 1, keys, d], 5)?;
        let q_mean = cpu::block_means(&noise(subject.dtype, &[1, heads, queries, d], 4)?, blocks.q())?;
        let k_mean = cpu::block_means(&k, blocks.kv())?;
        let class = |block: usize| [PARTIAL, PARTIAL, FULL, PARTIAL, EMPTY][block % 5];
        let classes: Vec<u8> = (0..heads * rows * columns).map(class).collect();
        let mut expected: Vec<f32> =
            q_mean.chunks(rows * d).flat_map(|q| cpu::logits(q, &k_mean, d, scale)).collect();
        // What is not written must not look right, as it would where the function keeps every key.
        let poisoned = |(logit, class): (&f32, &u8)| if *class == PARTIAL { f32::NAN } else { *logit };
        let before: Vec<f32> = expected.iter().zip(&classes).map(poisoned).collect();
        let partial =
            cpu::PartialScores { function: mask_mod, k: &k, blocks, seqs: (queries, keys), scale, by_keys };
        let code = UserCode::new([mask_mod.name(), ""]);
        code.run(|| {
            (0..heads).try_for_each(|head| {
                let (place, at) = (cpu::Head { batch: 0, head, kv_unit: 0 }, head * rows * columns);
                let (classes, logits) =
                    (&classes[at..][..rows * columns], &mut expected[at..][..rows * columns]);
                partial.overwrite(&code, place, classes, &q_mean[head * rows * d..][..rows * d], logits)
            })
        })??;
        Ok(PartialCase {
            seq_q: queries,
            q_mean: Tensor::from_slice(&q_mean, &[1, heads, rows, d])?,
            k,
            k_mean: Tensor::from_slice(&k_mean, &[1, 1, columns, d])?,
            classes: Tensor::from_slice(&classes, &map)?,
            before: Tensor::from_slice(&before, &map)?,
            expected,
        })
    }
}
