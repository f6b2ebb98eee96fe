//! The kernel renders and compiles for every spec, and its launch is checked; on a GPU it is right.

#[path = "../../../tests/support/needs.rs"]
mod needs;

use custom_kernel::kernels::rms_norm::{Args, SOURCE};
use custom_kernel::{RmsNorm, rms_norm_cpu};
use half::f16;
use libtest_mimic::Arguments;
use std::sync::Arc;
use tilewright::codegen::{Arch, Candidate, Generator, Variant};
use tilewright::launch::{BindError, KernelArgs};
use tilewright::toolchain::Toolchain;
use tilewright::{DType, Device, Tensor};

fn candidates(dtype: DType, d: i64) -> (Generator, Vec<Candidate>) {
    let generator = Generator::new(&SOURCE).unwrap();
    let spec = Arc::new(generator.spec(&[("T", dtype.into()), ("D", d.into())]).unwrap());
    let accepted = generator.candidates(&spec, Arch::Sm80).unwrap().accepted;
    (generator, accepted)
}

/// Every variant of every spec.
fn variants() -> Vec<Variant> {
    let specs = [DType::Bf16, DType::F16].into_iter().flat_map(|t| [64, 128, 256].map(|d| (t, d)));
    let rendered = specs.flat_map(|(dtype, d)| {
        let (generator, accepted) = candidates(dtype, d);
        let render = |candidate| {
            let variant = generator.render(candidate).unwrap();
            assert!(variant.source.contains(&format!("constexpr int D = {d};")));
            variant
        };
        accepted.iter().map(render).collect::<Vec<_>>()
    });
    rendered.collect()
}

fn every_candidate_renders() {
    assert!(variants().len() >= 6);
}

fn every_candidate_renders_and_compiles(toolchain: &Toolchain) {
    // As for a grid of any size: more than 65,535 heads or batches are folded.
    for variant in variants().into_iter().flat_map(|variant| [variant.folded().unwrap(), variant]) {
        let cubin = toolchain.compile(&variant.name, &variant.source, "sm_80").unwrap();
        assert!(!cubin.report.spills() && cubin.warnings.is_empty(), "{:?}", cubin);
    }
}

/// `cargo test -p custom-kernel --features ahead-of-time`
#[cfg(feature = "ahead-of-time")]
fn the_program_holds_its_kernels() {
    use tilewright::compile::{embedded, register};
    register(custom_kernel::AHEAD);
    let generator = Generator::new(&SOURCE).unwrap();
    for arch in [Arch::Sm80, Arch::Sm90a] {
        for spec in generator.shipped_specs().unwrap() {
            let preferred = &generator.candidates(&spec, arch).unwrap().accepted[0];
            let variant = generator.render(preferred).unwrap();
            let cubin = embedded(&variant.fingerprint, arch.name()).expect("it was compiled at build time");
            assert_eq!((cubin.name.as_str(), cubin.arch.as_str()), (variant.name.as_str(), arch.name()));
            assert!(cubin.is_whole() && !cubin.report.spills() && cubin.report.registers > 0);
        }
    }
    assert_eq!(embedded("0123456789abcdef", "sm_80"), None);
}

fn a_launch_is_checked() {
    let tensor = |shape: &[usize], address| {
        let strides = tilewright::tensor::contiguous_strides(shape);
        // SAFETY: the memory is never used: nothing is launched.
        unsafe { Tensor::from_device_pointer(0, address, DType::Bf16, shape, &strides) }.unwrap()
    };
    let (_, accepted) = candidates(DType::Bf16, 128);
    let x = tensor(&[1, 2, 100, 128], 0x10_0000);
    let (weight, wrong) = (tensor(&[128], 0x20_0000), tensor(&[64], 0x20_0000));
    let mut y = tensor(&[1, 2, 100, 128], 0x30_0000);
    let bound = Args { x: &x, weight: &weight, y: &mut y, epsilon: 1e-6 }.bind(&accepted[0]).unwrap();
    assert_eq!((bound.grid, bound.params.weight), ([7, 2, 1], 0x20_0000));
    let error = Args { x: &x, weight: &wrong, y: &mut y, epsilon: 1e-6 }.bind(&accepted[0]).expect_err("64");
    assert!(matches!(error, BindError::Disagree { dim: "head_dim", .. }));
    assert_eq!(
        error.to_string(),
        "kernel `rms_norm`: `head_dim` is 128 in `x` and 64 in `weight`: they must be equal"
    );
}

fn the_gpu_agrees_with_the_cpu(device: &Device) {
    let x: Vec<f16> = (0..2 * 3 * 100 * 64).map(|i| f16::from_f32((i as f32 * 0.37).sin())).collect();
    let weight: Vec<f16> = (0..64).map(|i| f16::from_f32(i as f32 / 32.0)).collect();
    let (x, weight) =
        (Tensor::from_slice(&x, &[2, 3, 100, 64]).unwrap(), Tensor::from_slice(&weight, &[64]).unwrap());
    let on_gpu = [&x, &weight].map(|tensor| tensor.to(device).unwrap());
    let norm = RmsNorm::new(device.as_cuda().unwrap(), DType::F16, 64).unwrap();
    let y = norm.run(&on_gpu[0], &on_gpu[1], 1e-6).unwrap();
    // Every schedule was checked, and timed until it was out of the race.
    let choice = norm.kernel().choice().unwrap();
    let record = choice.record.expect("it has several schedules");
    assert!(record.candidates().len() > 1, "{record:?}");
    let again = norm.run(&on_gpu[0], &on_gpu[1], 1e-6).unwrap();
    assert_eq!(again.to_f32_vec().unwrap(), y.to_f32_vec().unwrap());
    let expected = rms_norm_cpu(&x.to_f32_vec().unwrap(), &weight.to_f32_vec().unwrap(), 1e-6);
    for (y, expected) in y.to_f32_vec().unwrap().into_iter().zip(expected) {
        assert!((y - expected).abs() <= 2e-3, "{y} for {expected}");
    }
}

fn main() -> std::process::ExitCode {
    let (arguments, nvrtc, gpu) = (Arguments::from_args(), needs::nvrtc(), needs::gpu());
    let trials = vec![
        needs::plain("every_candidate_renders", every_candidate_renders),
        needs::plain("a_launch_is_checked", a_launch_is_checked),
        #[cfg(feature = "ahead-of-time")]
        needs::plain("the_program_holds_its_kernels", the_program_holds_its_kernels),
        needs::needing("every_candidate_renders_and_compiles", &nvrtc, every_candidate_renders_and_compiles),
        needs::needing("the_gpu_agrees_with_the_cpu", &gpu, the_gpu_agrees_with_the_cpu),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}
