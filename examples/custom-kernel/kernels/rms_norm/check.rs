//! A schedule against the same on the CPU: fewer rows than a thread block has, and more.

use super::Args;
use crate::rms_norm_cpu;
use half::{bf16, f16};
use tilewright::launch::{Probe, Verdict};
use tilewright::{DType, Error, Tensor};

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let (dtype, d, epsilon) = (probe.dtype("T")?, probe.int("D")?, args.epsilon);
    for seq in [1, 37] {
        let shape = [2, 3, seq, d];
        let (x, weight) = (wave(dtype, &shape, 0.37)?, wave(dtype, &[d], 0.11)?);
        let mut y = probe.poisoned(dtype, &shape)?;
        let small = Args {
            x: &x.to(probe.device())?,
            weight: &weight.to(probe.device())?,
            y: &mut y,
            epsilon,
        };
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { probe.launch(&small)? };
        let expected = rms_norm_cpu(&x.to_f32_vec()?, &weight.to_f32_vec()?, epsilon);
        for (i, (y, expected)) in y.to_f32_vec()?.into_iter().zip(expected).enumerate() {
            // Written so that a NaN fails.
            let close = (y - expected).abs() <= 0.01 * expected.abs().max(1.0);
            if !close {
                return Ok(Err(format!("it is {y} for {expected} at {i} of {shape:?}")));
            }
        }
    }
    Ok(Ok(()))
}

fn wave(dtype: DType, shape: &[usize], step: f32) -> Result<Tensor, Error> {
    let values = (0..shape.iter().product::<usize>()).map(|i| (i as f32 * step).sin() * 2.0);
    match dtype {
        DType::F16 => Tensor::from_slice(&values.map(f16::from_f32).collect::<Vec<_>>(), shape),
        _ => Tensor::from_slice(&values.map(bf16::from_f32).collect::<Vec<_>>(), shape),
    }
}
