//! The kernels that ask a mask function which elements it keeps.

use super::compare::{close_scores, equal};
use super::{Rule, Sizes, Verdict, case, noise, poisoned, verdict};
use crate::device::Device;
use crate::kernels::{classify, score_partial};
use crate::launch::{FunctionArgs, Kernel};
use crate::mask::{EMPTY, FULL, PARTIAL};
use crate::user_code::UserCode;
use crate::{DType, Error, MaskMod, Tensor, cpu};

pub(in crate::attention) fn check_classify(
    rule: &Rule,
    sizes: &Sizes,
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
) -> Verdict {
    let Some(mask_mod) = rule.mask_mod.as_deref() else { return Ok(Ok(())) };
    let [heads, queries, keys] = case::extents(rule, sizes);
    let grid = [1, heads, queries.div_ceil(rule.blocks.q()), keys.div_ceil(rule.blocks.kv())];
    verdict(|| {
        let expected = crate::mask::classify(mask_mod, grid, rule.blocks, (queries, keys))?;
        let mut classes = poisoned(device, DType::U8, &grid)?;
        let (seq_q, seq_kv) = (queries as i32, keys as i32);
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { kernel.launch(&classify::Args { classes: &mut classes, seq_q, seq_kv }, Some(functions))? };
        Ok(equal("classes", &classes.to_vec::<u8>()?, &expected))
    })
}

pub(in crate::attention) fn check_score_partial(
    rule: &Rule,
    sizes: &Sizes,
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
) -> Verdict {
    let Some(mask_mod) = rule.mask_mod.as_deref() else { return Ok(Ok(())) };
    verdict(|| {
        let case = PartialCase::new(rule, mask_mod, sizes)?;
        let mut logits = case.before.to(device)?;
        let args = score_partial::Args {
            q_mean: &case.q_mean.to(device)?,
            k: &case.k.to(device)?,
            k_mean: &case.k_mean.to(device)?,
            classes: &case.classes.to(device)?,
            logits: &mut logits,
            seq_q: case.seq_q as i32,
            scale: rule.scale,
        };
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { kernel.launch(&args, Some(functions))? };
        Ok(close_scores(&logits.to_f32_vec()?, &case.expected))
    })
}

/// Blocks to score by the keys that a function keeps.
pub(super) struct PartialCase {
    seq_q: usize,
    q_mean: Tensor,
    k: Tensor,
    k_mean: Tensor,
    pub(super) classes: Tensor,
    /// What is there before, and stays where a block is not partial.
    pub(super) before: Tensor,
    pub(super) expected: Vec<f32>,
}

impl PartialCase {
    /// Most blocks are said to be partial, whatever the function makes of them: on so few positions it may keep all of each, or
    /// nothing, and there would be nothing to see.
    pub(super) fn new(rule: &Rule, mask_mod: &dyn MaskMod, sizes: &Sizes) -> Result<Self, Error> {
        let (d, blocks, scale) = (rule.head_dim.get(), rule.blocks, rule.scale);
        let [heads, queries, keys] = case::extents(rule, sizes);
        let (rows, columns) = (queries.div_ceil(blocks.q()), keys.div_ceil(blocks.kv()));
        let map = [1, heads, rows, columns];
        let k = noise(rule.dtype, &[1, 1, keys, d], 5)?;
        let q_mean = cpu::block_means(&noise(rule.dtype, &[1, heads, queries, d], 4)?, blocks.q())?;
        let k_mean = cpu::block_means(&k, blocks.kv())?;
        let class = |block: usize| [PARTIAL, PARTIAL, FULL, PARTIAL, EMPTY][block % 5];
        let classes: Vec<u8> = (0..heads * rows * columns).map(class).collect();
        let mut expected: Vec<f32> =
            q_mean.chunks(rows * d).flat_map(|q| cpu::logits(q, &k_mean, d, scale)).collect();
        // What is not written must not look right, as it would where the function keeps every key.
        let poisoned = |(logit, class): (&f32, &u8)| if *class == PARTIAL { f32::NAN } else { *logit };
        let before: Vec<f32> = expected.iter().zip(&classes).map(poisoned).collect();
        let partial = cpu::PartialScores { function: mask_mod, k: &k, blocks, seqs: (queries, keys), scale };
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
