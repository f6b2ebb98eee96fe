//! The kernels of the backward.

use super::forward::mask;
use super::{Rule, TOKENS, close, equal, noise, verdict};
use crate::attention::{Gradients, HeadDim};
use crate::device::Device;
use crate::kernels::{backward_kv, backward_q, mark};
use crate::launch::{FunctionArgs, Kernel};
use crate::{BlockMask, DType, Error, Tensor, cpu};

/// How far the gradients may be apart, relative Frobenius: the GPU rounds P and dS to the dtype, the executor does not.
const BOUND: f64 = 1e-2;

/// A sum in f32 in another order.
const SUM_BOUND: f64 = 1e-5;

/// Two query heads that share a key head; one mask for both.
struct Case {
    qkv: [Tensor; 3],
    out: Tensor,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor,
    mask: BlockMask,
}

impl Case {
    fn new(rule: &Rule) -> Result<Self, Error> {
        let noise = |heads, dim: HeadDim, seed| noise(rule.dtype, &[1, heads, TOKENS, dim.get()], seed);
        let qkv = [noise(2, rule.head_dim, 1)?, noise(1, rule.head_dim, 2)?, noise(1, rule.value_dim, 3)?];
        let mask = mask(rule)?;
        let (score_mod, mask_mod) = (rule.score_mod.as_deref(), rule.mask_mod.as_deref());
        let (out, lse) = cpu::attend(&qkv[0], &qkv[1], &qkv[2], &mask, rule.scale, score_mod, mask_mod)?;
        let d_out = noise(2, rule.value_dim, 4)?;
        let d_lse = super::noise(DType::F32, lse.shape(), 5)?;
        Ok(Case { qkv, out, lse, d_out, d_lse, mask })
    }

    fn gradients(&self, rule: &Rule) -> Result<Gradients, Error> {
        let Case { qkv: [q, k, v], out, lse, d_out, d_lse, mask } = self;
        let (score_mod, mask_mod) = (rule.score_mod.as_deref(), rule.mask_mod.as_deref());
        cpu::backward([q, k, v], [out, lse], (d_out, Some(d_lse)), mask, rule.scale, score_mod, mask_mod)
    }

    fn delta(&self) -> Result<Tensor, Error> {
        let d = self.out.shape()[3];
        let (out, d_out) = (self.out.to_f32_vec()?, self.d_out.to_f32_vec()?);
        let (lse, d_lse) = (self.lse.to_f32_vec()?, self.d_lse.to_f32_vec()?);
        let row = |(i, (a, b)): (usize, (&[f32], &[f32]))| match lse[i] {
            f32::NEG_INFINITY => 0.0,
            _ => a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>() - d_lse[i],
        };
        let delta: Vec<f32> = out.chunks(d).zip(d_out.chunks(d)).enumerate().map(row).collect();
        Tensor::from_slice(&delta, self.lse.shape())
    }

    fn to(&self, device: &Device) -> Result<Self, Error> {
        let [q, k, v] = &self.qkv;
        Ok(Case {
            qkv: [q.to(device)?, k.to(device)?, v.to(device)?],
            out: self.out.to(device)?,
            lse: self.lse.to(device)?,
            d_out: self.d_out.to(device)?,
            d_lse: self.d_lse.to(device)?,
            mask: self.mask.to(device)?,
        })
    }
}

fn poisoned(device: &Device, dtype: DType, like: &Tensor) -> Result<Tensor, Error> {
    let mut tensor = Tensor::uninit(device, dtype, like.shape())?;
    tensor.fill_bytes(0xFF)?;
    Ok(tensor)
}

/// Compares what is named, found and expected, within a bound. A user's function that cannot take the case leaves nothing to compare
/// with.
fn compare(outputs: &[(&str, &Tensor, &Tensor, f64)]) -> Result<Result<(), String>, Error> {
    for &(name, found, expected, bound) in outputs {
        let expected = expected.to_f32_vec()?;
        if !expected.iter().all(|x| x.is_finite()) {
            return Ok(Ok(()));
        }
        if let Err(wrong) = close(&found.to_f32_vec()?, &expected, bound) {
            return Ok(Err(format!("{name}: {wrong}")));
        }
    }
    Ok(Ok(()))
}

/// Says what is wrong with a kernel.
pub(in crate::attention) fn check_backward_kv(
    rule: &Rule,
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
) -> Result<(), String> {
    verdict(|| {
        let case = Case::new(rule)?;
        let expected = case.gradients(rule)?;
        let delta = &case.delta()?.to(device)?;
        let Case { qkv: [q, k, v], lse, d_out, mask, .. } = &case.to(device)?;
        let (mut dk, mut dv) = (poisoned(device, k.dtype(), k)?, poisoned(device, v.dtype(), v)?);
        // Some order: the last first.
        let &[.., key_blocks] = mask.q().counts.shape() else {
            unreachable!("a mask's counts have three dimensions")
        };
        let backwards: Vec<i32> = (0..key_blocks as i32).rev().collect();
        let key_order = Tensor::from_slice(&backwards, &[1, 1, key_blocks])?.to(device)?;
        let args = backward_kv::Args {
            q,
            k,
            v,
            d_out,
            lse,
            delta,
            q_counts: &mask.q().counts,
            q_indices: &mask.q().indices,
            full_q_counts: None,
            full_q_indices: None,
            key_order: Some(&key_order),
            dk: &mut dk,
            dv: &mut dv,
            scale: rule.scale,
        };
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { kernel.launch(&args, Some(functions))? };
        compare(&[("dk", &dk, &expected.dk, BOUND), ("dv", &dv, &expected.dv, BOUND)])
    })
}

/// As [`check_backward_kv`].
pub(in crate::attention) fn check_backward_q(
    rule: &Rule,
    device: &Device,
    functions: &FunctionArgs,
    kernel: &Kernel,
) -> Result<(), String> {
    verdict(|| {
        let case = Case::new(rule)?;
        let (expected, expected_delta) = (case.gradients(rule)?, case.delta()?);
        let Case { qkv: [q, k, v], out, lse, d_out, d_lse, mask } = &case.to(device)?;
        let (mut dq, mut delta) = (poisoned(device, q.dtype(), q)?, poisoned(device, DType::F32, lse)?);
        let args = backward_q::Args {
            q,
            k,
            v,
            out,
            d_out,
            lse,
            d_lse: Some(d_lse),
            kv_counts: &mask.kv().counts,
            kv_indices: &mask.kv().indices,
            full_kv_counts: None,
            full_kv_indices: None,
            dq: &mut dq,
            delta: &mut delta,
            scale: rule.scale,
        };
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { kernel.launch(&args, Some(functions))? };
        compare(&[("delta", &delta, &expected_delta, SUM_BOUND), ("dq", &dq, &expected.dq, BOUND)])
    })
}

/// As [`check_backward_kv`]. Lists with a count past their width, and with numbers that are no block.
pub(in crate::attention) fn check_mark(device: &Device, kernel: &Kernel) -> Result<(), String> {
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
        let mut keep = Tensor::uninit(device, DType::I32, &[1, 1, rows.len(), words])?;
        keep.fill_bytes(0xFF)?;
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
