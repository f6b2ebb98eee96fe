//! The kernels of the backward.

use super::compare::{close_beyond, equal, not_zero};
use super::{Case, Rule, Sizes, Verdict, case, poisoned, verdict};
use crate::device::Device;
use crate::kernels::{backward_kv, backward_q, mark};
use crate::launch::{FunctionArgs, Kernel};
use crate::{DType, Tensor};

/// How far the gradients may be apart, relative Frobenius: the GPU rounds P and dS to the dtype, the executor does not. Of gradients
/// smaller than the second number little is left but what cancels: that of a query with a single key is 0 but for rounding.
pub(super) const GRADIENT: [f64; 2] = [1e-2, 1e-3];

/// The same of dq and dk, whose terms have the scale as a factor.
pub(super) fn of_scores(scale: f32) -> [f64; 2] {
    let [bound, floor] = GRADIENT;
    [bound, floor * f64::from(scale.abs()).max(1.0)]
}

/// The same of delta, a sum in f32 in another order; the second number is its usual size, for the terms of a few can cancel.
pub(super) const SUM: [f64; 2] = [1e-5, 4.0];

/// An output by its name, found and expected; how far they may be apart, and of what size at least; and which elements must be 0.
pub(super) type Compared<'a> = (&'a str, [&'a Tensor; 2], [f64; 2], &'a dyn Fn(usize) -> bool);

pub(super) fn compare(outputs: &[Compared<'_>]) -> Verdict {
    for &(name, [found, expected], [bound, floor], is_zero) in outputs {
        let (found, expected) = (found.to_f32_vec()?, expected.to_f32_vec()?);
        if let Some(at) = not_zero(&found, 1, is_zero) {
            return Ok(Err(format!(
                "{name}: it is not 0 at {at}, where nothing is attended to on a small case"
            )));
        }
        if let Err(wrong) = close_beyond(&found, &expected, bound, floor) {
            return Ok(Err(format!("{name}: {wrong}")));
        }
    }
    Ok(Ok(()))
}

/// Says what is wrong with a kernel.
pub(in crate::attention) fn check_backward_kv(
    rule: &Rule,
    sizes: &Sizes,
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
) -> Verdict {
    verdict(|| {
        let case = Case::new(rule, sizes)?;
        let expected = case.gradients(rule, true)?;
        let delta = &case.delta(true)?.to(device)?;
        let Case { qkv: [q, k, v], lse, d_out, mask, .. } = &case.to(device)?;
        let mut dk = poisoned(device, k.dtype(), k.shape())?;
        let mut dv = poisoned(device, v.dtype(), v.shape())?;
        let key_order = case::backwards(mask.shape()[3])?.to(device)?;
        let args = backward_kv::Args {
            q,
            k,
            v,
            d_out,
            lse,
            delta,
            q_counts: &mask.q().counts,
            q_indices: &mask.q().indices,
            full_q_counts: mask.full_q().map(|full| &full.counts),
            full_q_indices: mask.full_q().map(|full| &full.indices),
            key_order: Some(&key_order),
            dk: &mut dk,
            dv: &mut dv,
            scale: rule.scale,
        };
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { kernel.launch(&args, Some(functions))? };
        let unlisted = case.without_queries()?;
        let of_rows = |d: usize| {
            let (unlisted, block) = (&unlisted, rule.blocks.kv());
            move |element: usize| unlisted[element / d / block]
        };
        compare(&[
            ("dk", [&dk, &expected.dk], of_scores(rule.scale), &of_rows(rule.head_dim.get())),
            ("dv", [&dv, &expected.dv], GRADIENT, &of_rows(rule.value_dim.get())),
        ])
    })
}

/// As [`check_backward_kv`]; of losses that depend on `lse` and of those that do not.
pub(in crate::attention) fn check_backward_q(
    rule: &Rule,
    sizes: &Sizes,
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
) -> Verdict {
    verdict(|| {
        let case = Case::new(rule, sizes)?;
        let Case { qkv: [q, k, v], out, lse, d_out, d_lse, mask } = &case.to(device)?;
        let (empty, d) = (case.without_keys()?, rule.head_dim.get());
        for with_d_lse in [true, false] {
            let mut dq = poisoned(device, q.dtype(), q.shape())?;
            let mut delta = poisoned(device, DType::F32, lse.shape())?;
            let args = backward_q::Args {
                q,
                k,
                v,
                out,
                d_out,
                lse,
                d_lse: with_d_lse.then_some(d_lse),
                kv_counts: &mask.kv().counts,
                kv_indices: &mask.kv().indices,
                full_kv_counts: mask.full_kv().map(|full| &full.counts),
                full_kv_indices: mask.full_kv().map(|full| &full.indices),
                dq: &mut dq,
                delta: &mut delta,
                scale: rule.scale,
            };
            // SAFETY: a whole case of its own, which is read on the host.
            unsafe { kernel.launch(&args, Some(functions))? };
            let (expected, sums) = (case.gradients(rule, with_d_lse)?, case.delta(with_d_lse)?);
            let verdict = compare(&[
                ("delta", [&delta, &sums], SUM, &|row| empty[row]),
                ("dq", [&dq, &expected.dq], of_scores(rule.scale), &|element| empty[element / d]),
            ])?;
            if verdict.is_err() {
                return Ok(verdict);
            }
        }
        Ok(Ok(()))
    })
}

/// As [`check_backward_kv`]. Lists with a count past their width, and with numbers that are no block.
pub(in crate::attention) fn check_mark(device: &Device, kernel: &Kernel) -> Verdict {
    const BLOCKS: usize = 70;
    let rows: [(i32, [i32; 4]); 5] =
        [(2, [0, 69, 5, 5]), (9, [31, 32, 63, 64]), (0, [1, 2, 3, 4]), (4, [70, -1, 33, 3]), (-3, [7; 4])];
    verdict(|| {
        let counts: Vec<i32> = rows.iter().map(|(count, _)| *count).collect();
        let indices: Vec<i32> = rows.iter().flat_map(|(_, list)| *list).collect();
        let words = BLOCKS.div_ceil(32);
        let mut expected = vec![0; rows.len() * words];
        for (row, (count, list)) in rows.iter().enumerate() {
            for &block in &list[..(*count).clamp(0, 4) as usize] {
                if (0..BLOCKS as i32).contains(&block) {
                    expected[row * words + block as usize / 32] |= 1 << (block % 32);
                }
            }
        }
        let shape = [1, 1, rows.len()];
        let counts = Tensor::from_slice(&counts, &shape)?.to(device)?;
        let indices = Tensor::from_slice(&indices, &[1, 1, rows.len(), 4])?.to(device)?;
        let mut keep = poisoned(device, DType::I32, &[1, 1, rows.len(), words])?;
        let mut finished = Tensor::from_slice(&[-1], &[1, 1])?.to(device)?;
        let args = mark::Args {
            kv_counts: &counts,
            kv_indices: &indices,
            keep: &mut keep,
            finished: Some(&mut finished),
            kv_blocks: BLOCKS as i32,
        };
        // SAFETY: lists may hold anything.
        unsafe { kernel.launch(&args, None)? };
        if finished.to_vec::<i32>()? != [0] {
            return Ok(Err("it leaves the counter as it is".to_owned()));
        }
        Ok(equal("bits", &keep.to_vec::<i32>()?, &expected))
    })
}
