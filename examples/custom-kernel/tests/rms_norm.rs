//! The kernel renders and compiles for every spec, and its launch is checked; on a GPU it is right.

#[path = "../../../tests/support/needs.rs"]
mod needs;

use custom_kernel::kernels::rms_norm::{self, Args, SOURCE};
use custom_kernel::{RmsNorm, rms_norm_cpu};
use half::f16;
use libtest_mimic::Arguments;
use std::sync::Arc;
use tilewright::codegen::{Arch, Candidate, Generator, KernelSource, Variant};
use tilewright::launch::{BindError, DynamicArgs, DynamicKernel, KernelArgs, bucket};
use tilewright::services::{Policy, Services};
use tilewright::toolchain::Toolchain;
use tilewright::tune::spec_fingerprint;
use tilewright::{DType, Device, Error, Tensor};

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

/// A tensor that nobody reads.
fn tensor(shape: &[usize], address: u64) -> Tensor {
    let strides = Tensor::contiguous_strides(shape);
    // SAFETY: the memory is never used: nothing is launched.
    unsafe { Tensor::from_device_pointer(0, address, DType::Bf16, shape, &strides) }.unwrap()
}

/// What `tilewright tune --templates kernels` leaves in the cache is what a launch of the bindings looks for: its
/// record is of the same kernel and spec, the same sizes, and schedules of the same sources.
fn the_command_and_the_bindings_share_records() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let read = KernelSource::read_all(&folder).unwrap().remove(0);
    let (kernel, by_name) = (DynamicKernel::new(read.clone()).unwrap(), Generator::new(&read).unwrap());
    for variant in variants() {
        let spec = &variant.candidate.spec;
        let values: Vec<_> = spec.values().iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let same = Arc::new(by_name.spec(&values).unwrap());
        assert_eq!(spec_fingerprint(&read, &same), spec_fingerprint(&SOURCE, spec));
        let accepted = by_name.candidates(&same, Arch::Sm80).unwrap().accepted;
        let same = accepted.iter().find(|same| same.schedule == variant.candidate.schedule).unwrap();
        assert_eq!(by_name.render(same).unwrap().fingerprint, variant.fingerprint);
    }
    let (x, weight) = (tensor(&[1, 2, 100, 128], 0x10_0000), tensor(&[128], 0x20_0000));
    let mut y = tensor(&[1, 2, 100, 128], 0x30_0000);
    let given = [("x", &x), ("weight", &weight), ("y", &y)].map(|(name, given)| (name.into(), given.clone()));
    let epsilon = 1e-6;
    let named = DynamicArgs::new(kernel, given.into(), &[("epsilon".into(), f64::from(epsilon))]).unwrap();
    let args = Args { x: &x, weight: &weight, y: &mut y, epsilon };
    assert_eq!(bucket(&named.tensors()), bucket(&args.tensors()));
    let (_, accepted) = candidates(DType::Bf16, 128);
    let (named, bound) = (named.bind(&accepted[0]).unwrap(), args.bind(&accepted[0]).unwrap());
    assert_eq!((named.grid, named.params.len()), (bound.grid, size_of::<rms_norm::Params>()));
}

fn a_launch_is_checked() {
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

/// The command tunes the folder; the crate's own launch of these extents finds the record where nothing may be timed.
fn the_command_tunes_for_the_crate(device: &Device) {
    let kernels = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
    // Extents that nothing else here tunes.
    let said = tilewright::cli::quietly(&[
        "tilewright",
        "tune",
        "--templates",
        kernels,
        "--kernel",
        "rms_norm",
        "--spec",
        "T=f16,D=64",
        "--dims",
        "batch=2,heads=3,seq=1111,head_dim=64",
        "--scalars",
        "epsilon=1e-6",
        "--explain",
    ]);
    let said = said.unwrap();
    assert!(said.contains("batch=2 heads=3 seq=1111 head_dim=64: ready in"), "{said}");
    let services = Services::builder().policy(Policy::CacheOnly).build();
    let device = device.clone().with_services(&services);
    let norm = RmsNorm::new(device.as_cuda().unwrap(), DType::F16, 64).unwrap();
    let run = |seq: usize| {
        let x: Vec<f16> = (0..6 * seq * 64).map(|i| f16::from_f32((i as f32 * 0.37).sin())).collect();
        let weight: Vec<f16> = (0..64).map(|i| f16::from_f32(i as f32 / 32.0)).collect();
        let (x, weight) =
            (Tensor::from_slice(&x, &[2, 3, seq, 64]).unwrap(), Tensor::from_slice(&weight, &[64]).unwrap());
        let expected = rms_norm_cpu(&x.to_f32_vec().unwrap(), &weight.to_f32_vec().unwrap(), 1e-6);
        let y = norm.run(&x.to(&device).unwrap(), &weight.to(&device).unwrap(), 1e-6)?;
        Ok::<_, Error>((y.to_f32_vec().unwrap(), expected))
    };
    let (found, expected) = run(1111).unwrap();
    for (y, expected) in found.into_iter().zip(expected) {
        assert!((y - expected).abs() <= 2e-3, "{y} for {expected}");
    }
    let choice = norm.kernel().choice().unwrap();
    assert!(choice.record.expect("the command's").candidates().len() > 1);
    assert!(said.contains(&choice.variant.name), "{} in {said}", choice.variant.name);
    // Of other extents there is none.
    assert!(matches!(run(30_000), Err(Error::CacheOnly { .. })));
}

fn main() -> std::process::ExitCode {
    let (arguments, nvrtc, gpu) = (Arguments::from_args(), needs::nvrtc(), needs::gpu());
    let trials = vec![
        needs::plain("every_candidate_renders", every_candidate_renders),
        needs::plain("a_launch_is_checked", a_launch_is_checked),
        needs::plain(
            "the_command_and_the_bindings_share_records",
            the_command_and_the_bindings_share_records,
        ),
        #[cfg(feature = "ahead-of-time")]
        needs::plain("the_program_holds_its_kernels", the_program_holds_its_kernels),
        needs::needing("every_candidate_renders_and_compiles", &nvrtc, every_candidate_renders_and_compiles),
        needs::needing("the_gpu_agrees_with_the_cpu", &gpu, the_gpu_agrees_with_the_cpu),
        needs::needing("the_command_tunes_for_the_crate", &gpu, the_command_tunes_for_the_crate),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}
