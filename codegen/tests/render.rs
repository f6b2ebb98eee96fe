//! What is generated for shipped kernels: everything above the body, which changes with a declaration and not with the
//! CUDA of a body; the tuning space; and all of it for a small kernel.
//!
//! The bodies themselves are in `generated/sources`, which CI compares with the generator. After a wanted change:
//! `INSTA_UPDATE=always cargo test -p tilewright-codegen`.

mod support;

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;
use support::{BODY, DECLARATION, root, source};
use tilewright_codegen::lower::{DeviceFunction, FunctionKind};
use tilewright_codegen::{Arch, DType, Generator, KernelSource, KernelSpec, Value, Variant};

const SOFTCAP: &str = "fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
    cap * (score / cap).tanh()
}";
const DOCUMENT: &str = "fn document(b: i32, h: i32, q: i32, kv: i32, doc: &[i32]) -> bool {
    doc[q as usize] == doc[kv as usize]
}";

fn shipped(kernel: &str) -> Generator {
    Generator::new(&KernelSource::read(&root().join("templates"), kernel).unwrap()).unwrap()
}

fn preferred(generator: &Generator, spec: KernelSpec) -> Variant {
    let candidates = generator.candidates(&Arc::new(spec), Arch::Sm80).unwrap();
    generator.render(&candidates.accepted[0]).unwrap()
}

fn forward(generator: &Generator, (dtype, d, q, kv): (DType, i64, i64, i64)) -> KernelSpec {
    let values = [("T", dtype.into()), ("D", d.into()), ("BLOCK_Q", q.into()), ("BLOCK_KV", kv.into())];
    generator.spec(&values).unwrap()
}

fn with(spec: KernelSpec, slot: &str, kind: FunctionKind, text: &str) -> KernelSpec {
    spec.with_function(slot, Arc::new(DeviceFunction::from_source(kind, text).unwrap())).unwrap()
}

/// Everything above the body.
fn prelude(variant: &Variant) -> &str {
    let end = format!("#define TILEWRIGHT_KERNEL {}\n", variant.name);
    let at = variant.source.find(&end).expect("the prelude ends in the kernel's name");
    &variant.source[..at + end.len()]
}

#[test]
fn preludes_of_the_shipped_kernels() {
    for source in KernelSource::read_all(&root().join("templates")).unwrap() {
        let generator = Generator::new(&source).unwrap();
        let spec = generator.shipped_specs().unwrap().swap_remove(0);
        let schedules = Arch::SHIPPED.map(|arch| generator.candidates(&spec, arch).unwrap().accepted.len());
        let is_checked = source.has_check || schedules.iter().all(|&count| count == 1);
        assert!(is_checked, "{}: without a check.rs any of its schedules may win", source.name);
        let variant = preferred(&generator, Arc::unwrap_or_clone(spec));
        insta::assert_snapshot!(source.name.as_ref(), prelude(&variant));
    }
}

/// The lines in which a forward differs from the plain one of bf16, 128 and 128×64.
#[test]
fn forwards_differ_in_what_their_specs_say() {
    let generator = shipped("forward");
    let plain = forward(&generator, (DType::Bf16, 128, 128, 64));
    let base = preferred(&generator, plain.clone());
    let known: HashSet<&str> = prelude(&base).lines().collect();
    let narrow = [("T", DType::Bf16.into()), ("D", 192.into()), ("D_V", 128.into())];
    let blocks = [("BLOCK_Q", 128.into()), ("BLOCK_KV", 64.into())];
    let narrow = generator.spec(&[&narrow[..], &blocks].concat()).unwrap();
    let softcap = with(plain.clone(), "score_mod", FunctionKind::ScoreMod, SOFTCAP);
    let document = with(plain, "mask_mod", FunctionKind::MaskMod, DOCUMENT);
    let both = with(softcap.clone(), "mask_mod", FunctionKind::MaskMod, DOCUMENT);
    let mut report = String::new();
    for (what, spec) in [
        ("f16, 64, 64×64", forward(&generator, (DType::F16, 64, 64, 64))),
        ("bf16, 96, 128×128", forward(&generator, (DType::Bf16, 96, 128, 128))),
        ("bf16, 256, 64×128", forward(&generator, (DType::Bf16, 256, 64, 128))),
        ("bf16, 192 and 128, 128×64", narrow),
        ("soft-cap", softcap),
        ("documents", document),
        ("soft-cap and documents", both),
    ] {
        writeln!(report, "# {what}").unwrap();
        let variant = preferred(&generator, spec);
        let text = prelude(&variant).replace(tilewright_codegen::lower::DEVICE_PRELUDE, "<device prelude>");
        text.lines()
            .filter(|line| !known.contains(line))
            .for_each(|line| writeln!(report, "{line}").unwrap());
        report.push('\n');
    }
    insta::assert_snapshot!("forwards", report);
}

#[test]
fn the_whole_source_of_a_small_kernel() {
    let generator = Generator::new(&source(DECLARATION, BODY)).unwrap();
    let spec = generator.spec(&[("T", DType::Bf16.into()), ("BLOCK", 128.into())]).unwrap();
    insta::assert_snapshot!("scale", preferred(&generator, spec).source);
}

/// The lines in which a kernel that asks for the gradient differs from one that does not, with and without a function.
#[test]
fn a_gradient_is_a_method_of_the_functor() {
    let prelude_of = |declaration: &str, function: Option<&str>| {
        let generator = Generator::new(&source(declaration, BODY)).unwrap();
        let mut spec = generator.spec(&[("T", DType::Bf16.into()), ("BLOCK", 128.into())]).unwrap();
        if let Some(text) = function {
            spec = with(spec, "score_mod", FunctionKind::ScoreMod, text);
        }
        prelude(&preferred(&generator, spec)).to_owned()
    };
    let asking = DECLARATION.replace("score_mod: ScoreMod", "score_mod: ScoreMod + Gradient");
    let mut report = String::new();
    for (what, function) in [("no function", None), ("soft-cap", Some(SOFTCAP))] {
        writeln!(report, "# {what}").unwrap();
        let plain = prelude_of(DECLARATION, function);
        for line in prelude_of(&asking, function).lines().filter(|line| !plain.lines().any(|l| l == *line)) {
            writeln!(report, "{line}").unwrap();
        }
    }
    insta::assert_snapshot!("gradient", report);
}

#[test]
fn equal_candidates_are_equal_sources_and_others_are_not() {
    let generator = Generator::new(&source(DECLARATION, BODY)).unwrap();
    let (mut names, mut fingerprints) = (HashSet::new(), HashSet::new());
    for dtype in [DType::F16, DType::Bf16] {
        for block in [64, 128] {
            let spec =
                Arc::new(generator.spec(&[("T", dtype.into()), ("BLOCK", Value::Int(block))]).unwrap());
            for candidate in generator.candidates(&spec, Arch::Sm80).unwrap().accepted {
                let (first, again) =
                    (generator.render(&candidate).unwrap(), generator.render(&candidate).unwrap());
                assert_eq!((&first.source, &first.fingerprint), (&again.source, &again.fingerprint));
                assert!(names.insert(first.name) && fingerprints.insert(first.fingerprint));
            }
        }
    }
    assert_eq!(names.len(), 8);
}

/// What fits and what does not, for every spec of `forward`, on the architecture with the least shared memory and on
/// the one with the most. The element type changes nothing.
#[test]
fn candidates_of_the_forward() {
    let generator = shipped("forward");
    let mut report = String::new();
    for arch in [Arch::Sm86, Arch::Sm90a] {
        for (d, (q, kv)) in [64, 96, 128, 256]
            .into_iter()
            .flat_map(|d| [(64, 64), (64, 128), (128, 64), (128, 128)].map(|b| (d, b)))
        {
            let [table, other] = [DType::Bf16, DType::F16].map(|dtype| {
                let spec = Arc::new(forward(&generator, (dtype, d, q, kv)));
                let found = generator.candidates(&spec, arch).unwrap();
                let accepted = found.accepted.iter().map(|candidate| {
                    let budget = candidate.budget;
                    format!(
                        "  {}: {} threads, {} bytes, about {} registers\n",
                        candidate.schedule, budget.threads, budget.smem_bytes, budget.registers
                    )
                });
                let rejected = found.rejected.iter().map(|r| format!("  not {}: {}\n", r.schedule, r.reason));
                accepted.chain(rejected).collect::<String>()
            });
            assert_eq!(table, other);
            writeln!(report, "{arch} D={d} {q}×{kv}\n{table}").unwrap();
        }
    }
    insta::assert_snapshot!("forward_candidates", report);
}
