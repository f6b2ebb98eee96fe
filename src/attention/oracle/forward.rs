//! The forward.

use super::compare::close_forward;
use super::{Case, Rule, Sizes, Verdict, case, poisoned, verdict};
use crate::device::Device;
use crate::kernels::forward;
use crate::launch::{FunctionArgs, Kernel};
use crate::{DType, Error, Tensor};

/// How far the outputs may be apart, relative Frobenius: the GPU rounds P to the dtype, the executor does not.
pub(super) const BOUND: f64 = 1e-2;

/// Says what is wrong with a kernel.
pub(in crate::attention) fn check_forward(
    rule: &Rule,
    sizes: &Sizes,
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
) -> Verdict {
    verdict(|| {
        let case = Case::new(rule, sizes)?;
        let [out, lse] = launch(&case.to(device)?, device, functions, kernel, rule.scale)?;
        let found = [out.to_f32_vec()?, lse.to_f32_vec()?];
        let expected = [case.out.to_f32_vec()?, case.lse.to_f32_vec()?];
        let jumps = rule.score_mod.is_some();
        Ok(close_forward([&found[0], &found[1]], [&expected[0], &expected[1]], BOUND, jumps))
    })
}

fn launch(
    case: &Case,
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
    scale: f32,
) -> Result<[Tensor; 2], Error> {
    let Case { qkv: [q, k, v], out, lse, mask, .. } = case;
    let mut out = poisoned(device, out.dtype(), out.shape())?;
    let mut lse = poisoned(device, DType::F32, lse.shape())?;
    let row_order = case::backwards(mask.shape()[2])?.to(device)?;
    let args = forward::Args {
        q,
        k,
        v,
        kv_counts: &mask.kv().counts,
        kv_indices: &mask.kv().indices,
        full_kv_counts: mask.full_kv().map(|full| &full.counts),
        full_kv_indices: mask.full_kv().map(|full| &full.indices),
        row_order: Some(&row_order),
        out: &mut out,
        lse: &mut lse,
        scale,
    };
    // SAFETY: a whole case of its own, which is read on the host.
    unsafe { kernel.launch(&args, Some(functions))? };
    Ok([out, lse])
}
