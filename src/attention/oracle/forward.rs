//! The forward.

use super::{Rule, TOKENS, close, noise, verdict};
use crate::device::Device;
use crate::kernels::forward;
use crate::launch::{FunctionArgs, Kernel};
use crate::{BlockMask, DType, Error, Tensor, cpu};

/// How far the outputs may be apart, relative Frobenius: the GPU rounds P to the dtype, the executor does not.
const BOUND: f64 = 1e-2;

/// Says what is wrong with a kernel. A user's function that cannot take the case (a slice shorter than it, say) leaves
/// nothing to compare with.
pub(in crate::attention) fn check_forward(
    rule: &Rule,
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
) -> Result<(), String> {
    let [keys, values] = [rule.head_dim, rule.value_dim].map(|dim| [1, 1, TOKENS, dim.get()]);
    verdict(|| {
        let noise = |shape, seed| noise(rule.dtype, shape, seed);
        let (q, k, v) = (noise(&keys, 1)?, noise(&keys, 2)?, noise(&values, 3)?);
        let mask = mask(rule)?;
        let (score_mod, mask_mod) = (rule.score_mod.as_deref(), rule.mask_mod.as_deref());
        let expected = cpu::attend(&q, &k, &v, &mask, rule.scale, score_mod, mask_mod)?.0.to_f32_vec()?;
        let found = launch(device, functions, kernel, [&q, &k, &v], &mask, rule.scale)?.to_f32_vec()?;
        if !expected.iter().all(|x| x.is_finite()) {
            return Ok(Ok(()));
        }
        Ok(close(&found, &expected, BOUND))
    })
}

fn launch(
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
    [q, k, v]: [&Tensor; 3],
    mask: &BlockMask,
    scale: f32,
) -> Result<Tensor, Error> {
    let (q, k, v, mask) = (q.to(device)?, k.to(device)?, v.to(device)?, mask.to(device)?);
    let mut out = Tensor::uninit(device, q.dtype(), v.shape())?;
    let mut lse = Tensor::uninit(device, DType::F32, &q.shape()[..3])?;
    out.fill_bytes(0xFF)?;
    let args = forward::Args {
        q: &q,
        k: &k,
        v: &v,
        kv_counts: &mask.kv().counts,
        kv_indices: &mask.kv().indices,
        full_kv_counts: mask.full_kv().map(|full| &full.counts),
        full_kv_indices: mask.full_kv().map(|full| &full.indices),
        row_order: None,
        out: &mut out,
        lse: &mut lse,
        scale,
    };
    // SAFETY: the lists are those of a mask, and the result is read on the host.
    unsafe { kernel.launch(&args, Some(functions))? };
    Ok(out)
}

/// Two of three blocks; the first half of those kept apply the mask function, where there is one.
pub(super) fn mask(rule: &Rule) -> Result<BlockMask, Error> {
    let blocks = (rule.blocks.q(), rule.blocks.kv());
    let shape = [1, 1, TOKENS.div_ceil(blocks.0), TOKENS.div_ceil(blocks.1)];
    let kept = |block: usize| !(block + 1).is_multiple_of(3);
    let map: Vec<bool> = (0..shape.iter().product()).map(kept).collect();
    BlockMask::from_dense(&map, shape, blocks, (TOKENS, TOKENS))
}
