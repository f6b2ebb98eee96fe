//! Runs the kernel on the first GPU and compares it with the CPU. Without a GPU it shows what would run, and compiles it
//! where NVRTC is found: `cargo run -p custom-kernel`

use custom_kernel::kernels::rms_norm::SOURCE;
use custom_kernel::{RmsNorm, rms_norm_cpu};
use half::bf16;
use std::sync::Arc;
use tilewright::codegen::{Arch, Generator};
use tilewright::toolchain::Toolchain;
use tilewright::{Device, Error, Tensor};

const EPSILON: f32 = 1e-6;
const SHAPE: [usize; 4] = [1, 12, 1000, 128];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Device::best() {
        Device::Cuda(device) => {
            let error = largest_error(&Device::Cuda(device.clone()))?;
            println!("{SHAPE:?} on {}: largest error {error:.1e}", Device::Cuda(device));
            if error > 0.02 {
                return Err("the kernel and the CPU differ by more than the rounding to bf16".into());
            }
        }
        Device::Cpu => {
            println!("No GPU here. What would run:");
            describe()?;
        }
    }
    Ok(())
}

fn largest_error(device: &Device) -> Result<f32, Error> {
    let wave = |len: usize, step: f32| (0..len).map(move |i| bf16::from_f32((i as f32 * step).sin() * 2.0));
    let x: Vec<bf16> = wave(SHAPE.iter().product(), 0.37).collect();
    let weight: Vec<bf16> = wave(SHAPE[3], 0.11).collect();
    let x = Tensor::from_slice(&x, &SHAPE)?;
    let weight = Tensor::from_slice(&weight, &SHAPE[3..])?;
    let Some(cuda) = device.as_cuda() else { return Ok(0.0) };
    let norm = RmsNorm::new(cuda, x.dtype(), SHAPE[3])?;
    let y = norm.run(&x.to(device)?, &weight.to(device)?, EPSILON)?.to_f32_vec()?;
    let expected = rms_norm_cpu(&x.to_f32_vec()?, &weight.to_f32_vec()?, EPSILON);
    // Written so that a NaN is the largest error of all.
    Ok(y.iter()
        .zip(&expected)
        .map(|(y, expected)| (y - expected).abs())
        .fold(0.0, |largest, error| if error > largest || error.is_nan() { error } else { largest }))
}

/// Prints the tuning space of every spec in `ship`, and compiles the preferred candidates.
fn describe() -> Result<(), Box<dyn std::error::Error>> {
    let generator = Generator::new(&SOURCE)?;
    let toolchain = Toolchain::find().map_err(|error| println!("\n{error}\n")).ok();
    for spec in generator.shipped_specs()? {
        let candidates = generator.candidates(&Arc::clone(&spec), Arch::Sm80)?;
        for candidate in &candidates.accepted {
            println!("{}: {} threads a block", candidate.name(), candidate.budget.threads);
        }
        for rejection in &candidates.rejected {
            println!("not {}: {}", rejection.schedule, rejection.reason);
        }
        let Some(toolchain) = &toolchain else { continue };
        let variant = generator.render(&candidates.accepted[0])?;
        let cubin = toolchain.compile(&variant.name, &variant.source, Arch::Sm80.name())?;
        println!(
            "  compiled the first in {:?}: {} registers a thread, {} bytes spilled",
            cubin.compile_time, cubin.report.registers, cubin.report.spill_store_bytes
        );
    }
    Ok(())
}
