//! The forward against the CPU executor on a small case, before a schedule may win.

use super::Rule;
use crate::device::Device;
use crate::kernels::forward;
use crate::launch::{FunctionArgs, Kernel};
use crate::{BlockMask, DType, Error, Tensor, cpu};

/// Tokens of the case: whole blocks and a short one, for every block size.
const TOKENS: usize = 300;

/// How far the outputs may be apart, relative Frobenius: the GPU rounds P to the dtype, the executor does not.
const BOUND: f64 = 1e-2;

/// Says what is wrong with a kernel. A user's function that cannot take the case (a slice shorter than it, say) leaves
/// nothing to compare with.
pub(super) fn check_forward(
    rule: &Rule,
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
) -> Result<(), String> {
    let case = || -> Result<Option<f64>, Error> {
        let [q, k, v] = [1, 2, 3].map(|seed| noise(rule, seed));
        let (q, k, v) = (q?, k?, v?);
        let mask = mask(rule)?;
        let (score_mod, mask_mod) = (rule.score_mod.as_deref(), rule.mask_mod.as_deref());
        let expected = match cpu::attend(&q, &k, &v, &mask, rule.scale, score_mod, mask_mod) {
            Ok((out, _)) => out.to_f32_vec()?,
            Err(Error::DeviceFunction { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = launch(device, functions, kernel, [&q, &k, &v], &mask, rule.scale)?.to_f32_vec()?;
        if !expected.iter().all(|x| x.is_finite()) {
            return Ok(None);
        }
        let apart: f64 = found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let norm: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
        Ok(Some(if apart == 0.0 { 0.0 } else { (apart / norm).sqrt() }))
    };
    match case() {
        Ok(None) => Ok(()),
        Ok(Some(error)) if error <= BOUND => Ok(()),
        Ok(Some(error)) => {
            Err(format!("it is off by {error:.1e} from the CPU executor on a small case (bound {BOUND:.0e})"))
        }
        Err(error) => Err(error.to_string()),
    }
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
    let mut out = Tensor::uninit(device, q.dtype(), q.shape())?;
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
        out: &mut out,
        lse: &mut lse,
        scale,
    };
    kernel.launch(&args, Some(functions))?;
    Ok(out)
}

/// Two of three blocks; the first half of those kept apply the mask function, where there is one.
fn mask(rule: &Rule) -> Result<BlockMask, Error> {
    let blocks = (rule.blocks.q(), rule.blocks.kv());
    let shape = [1, 1, TOKENS.div_ceil(blocks.0), TOKENS.div_ceil(blocks.1)];
    let kept = |block: usize| !(block + 1).is_multiple_of(3);
    let map: Vec<bool> = (0..shape.iter().product()).map(kept).collect();
    BlockMask::from_dense(&map, shape, blocks, (TOKENS, TOKENS))
}

fn noise(rule: &Rule, seed: u32) -> Result<Tensor, Error> {
    let shape = [1, 1, TOKENS, rule.head_dim.get()];
    let values = (0..shape.iter().product::<usize>()).map(|i| {
        let mut bits = (i as u32 ^ seed.rotate_left(16)).wrapping_mul(0x9E37_79B1);
        bits = (bits ^ (bits >> 15)).wrapping_mul(0x85EB_CA77);
        (bits >> 8) as f32 / (1 << 22) as f32 - 2.0
    });
    match rule.dtype {
        DType::F16 => Tensor::from_slice(&values.map(half::f16::from_f32).collect::<Vec<_>>(), &shape),
        _ => Tensor::from_slice(&values.map(half::bf16::from_f32).collect::<Vec<_>>(), &shape),
    }
}
