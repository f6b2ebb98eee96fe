//! Everything the generator makes for the shipped kernels compiles, without spills and within every architecture's
//! shared memory. No GPU is needed, NVRTC is: without it these tests are listed as ignored, except where `CI` is set.

#[path = "support/needs.rs"]
mod needs;

use libtest_mimic::{Arguments, Trial};
use std::fmt::Write;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tilewright::codegen::lower::testing::{Methods, grow};
use tilewright::codegen::lower::{DEVICE_PRELUDE, DeviceFunction, FunctionKind};
use tilewright::codegen::{Arch, Candidate, Generator, KernelSource, KernelSpec, Variant};
use tilewright::compile::{CompileJob, Cubin, compile_all};
use tilewright::toolchain::Toolchain;
use tilewright::{DeviceFn, mask_mod, score_mod};

#[score_mod]
fn softcap(score: f32, b: i32, h: i32, q: i32, kv: i32, cap: f32) -> f32 {
    cap * (score / cap).tanh()
}

#[score_mod]
fn alibi(score: f32, b: i32, h: i32, q: i32, kv: i32, heads: i32) -> f32 {
    let slope = (-8.0 * (h + 1) as f32 / heads as f32).exp2();
    score - slope * (q - kv).abs() as f32
}

#[mask_mod]
fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool {
    q >= kv
}

#[mask_mod]
fn sliding_window(b: i32, h: i32, q: i32, kv: i32, window: i32) -> bool {
    (q - kv).abs() <= window
}

#[mask_mod]
fn document(b: i32, h: i32, q: i32, kv: i32, doc: &[i32]) -> bool {
    doc[q as usize] == doc[kv as usize]
}

/// The tests that need NVRTC.
const TESTS: &[needs::Test<Toolchain>] = &[
    (
        "shipped_variants_compile_everywhere_without_spills",
        shipped_variants_compile_everywhere_without_spills,
    ),
    ("folded_variants_compile", folded_variants_compile),
    ("folded_grids_of_any_expression_compile", folded_grids_of_any_expression_compile),
    ("every_spec_has_a_candidate_without_spills", every_spec_has_a_candidate_without_spills),
    (
        "kernels_with_functions_have_a_candidate_without_spills",
        kernels_with_functions_have_a_candidate_without_spills,
    ),
    ("random_functions_compile", random_functions_compile),
];

fn main() -> std::process::ExitCode {
    let (arguments, nvrtc) = (Arguments::from_args(), needs::nvrtc());
    let mut trials: Vec<Trial> =
        TESTS.iter().map(|&(name, test)| needs::needing(name, &nvrtc, test)).collect();
    trials.push(needs::needing("machine_code_is_what_it_was", &pinned(&nvrtc), machine_code_is_what_it_was));
    trials.push(needs::plain("every_spec_fits_every_architecture", every_spec_fits_every_architecture));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn kernels() -> Vec<Generator> {
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates");
    let sources = KernelSource::read_all(&templates).unwrap();
    sources.iter().map(|source| Generator::new(source).unwrap()).collect()
}

fn with(spec: KernelSpec, slot: &str, kind: FunctionKind, function: &dyn DeviceFn) -> KernelSpec {
    let parsed = DeviceFunction::from_source(kind, function.source()).unwrap();
    spec.with_function(slot, Arc::new(parsed)).unwrap()
}

/// Compiles all on all cores; every source must compile, without a warning of the compiler's own.
fn compile(toolchain: &Toolchain, wanted: &[(Variant, Arch)]) -> Vec<Cubin> {
    let jobs = wanted.iter().map(|(variant, arch)| CompileJob {
        name: variant.name.clone(),
        source: variant.source.clone(),
        arch: arch.name().to_owned(),
    });
    let cubins = compile_all(toolchain, jobs.collect(), |_| {});
    cubins.into_iter().map(|cubin| cubin.unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// What is wrong with a cubin other than spills.
fn faults(candidate: &Candidate, arch: Arch, cubin: &Cubin) -> Vec<String> {
    let mut faults = Vec::new();
    let (report, budget, limits) = (&cubin.report, &candidate.budget, arch.limits());
    let smem = i64::from(report.static_smem_bytes) + budget.smem_bytes;
    if smem > limits.smem_per_block {
        faults.push(format!("{smem} bytes of shared memory, the limit is {}", limits.smem_per_block));
    }
    // A block is launched only if the registers of all its threads fit.
    let registers = i64::from(report.registers.next_multiple_of(8)) * budget.threads;
    if registers > limits.registers_per_sm {
        faults.push(format!("{registers} registers a block, the limit is {}", limits.registers_per_sm));
    }
    if !cubin.is_whole() {
        faults.push("the cubin is cut short".to_owned());
    }
    let warnings = cubin.warnings.iter().filter(|warning| !warning.contains("spilled to local memory"));
    faults.extend(warnings.map(|warning| format!("warning: {warning}")));
    faults
}

/// The preferred variant of every shipped spec on every architecture, compiled once for all tests.
fn shipped(toolchain: &Toolchain) -> &'static [(Variant, Arch, Cubin)] {
    static SHIPPED: OnceLock<Vec<(Variant, Arch, Cubin)>> = OnceLock::new();
    SHIPPED.get_or_init(|| {
        let mut wanted = Vec::new();
        for generator in kernels() {
            for spec in generator.shipped_specs().unwrap() {
                for arch in Arch::SHIPPED {
                    let preferred = &generator.candidates(&spec, arch).unwrap().accepted[0];
                    wanted.push((generator.render(preferred).unwrap(), arch));
                }
            }
        }
        let cubins = compile(toolchain, &wanted);
        wanted.into_iter().zip(cubins).map(|((variant, arch), cubin)| (variant, arch, cubin)).collect()
    })
}

fn shipped_variants_compile_everywhere_without_spills(toolchain: &Toolchain) {
    let mut wrong = String::new();
    for (variant, arch, cubin) in shipped(toolchain) {
        let mut faults = faults(&variant.candidate, *arch, cubin);
        if cubin.report.spills() || cubin.report.stack_bytes > 0 {
            faults.push(format!("{:?}", cubin.report));
        }
        faults.iter().for_each(|fault| writeln!(wrong, "{} {arch}: {fault}", variant.name).unwrap());
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// The assembler whose machine code is committed: that of the packages `tilewright toolchain install` brings.
const ASSEMBLER: &str = "13.0.88";

/// NVRTC with that assembler.
fn pinned(nvrtc: &needs::Need<Toolchain>) -> needs::Need<Toolchain> {
    let toolchain = nvrtc.clone()?;
    let empty = toolchain.compile("empty", "extern \"C\" __global__ void empty() {}", "sm_80");
    let found = empty.ok().and_then(|cubin| cubin.assembler());
    match found.as_deref() == Some(ASSEMBLER) {
        true => Ok(toolchain),
        false => Err(needs::Lack {
            what: "another NVRTC than the committed code's",
            why: format!("{} has assembler {found:?}, needed {ASSEMBLER}", toolchain.library().display()),
            fails: std::env::var_os("CI").is_some(),
        }),
    }
}

/// A change that means no change of the kernels shows here that it is none: the machine code's digest, registers and shared
/// memory of every shipped variant. What is meant is taken over with `INSTA_UPDATE=always`.
fn machine_code_is_what_it_was(toolchain: &Toolchain) {
    let mut table = String::new();
    for (variant, arch, cubin) in shipped(toolchain) {
        let digest = cubin.code_digest().expect("a kernel has code");
        let smem = i64::from(cubin.report.static_smem_bytes) + variant.candidate.budget.smem_bytes;
        let registers = cubin.report.registers;
        writeln!(table, "{} {arch}: {digest}, {registers} registers, {smem} bytes shared", variant.name)
            .unwrap();
    }
    insta::assert_snapshot!("machine_code", table);
}

/// Grids with more blocks along y or z than CUDA launches are folded, by a text that goes into any source.
fn folded_variants_compile(toolchain: &Toolchain) {
    let mut wanted = Vec::new();
    for generator in kernels() {
        for spec in generator.shipped_specs().unwrap() {
            for arch in [Arch::Sm80, Arch::Sm90a] {
                let preferred = &generator.candidates(&spec, arch).unwrap().accepted[0];
                let variant = generator.render(preferred).unwrap();
                match variant.folded() {
                    Some(folded) => wanted.push((folded, arch)),
                    None => {
                        assert!(variant.name.contains("sm90"), "{}: a grid of one dimension", variant.name)
                    }
                }
            }
        }
    }
    let mut wrong = String::new();
    for ((variant, arch), cubin) in wanted.iter().zip(compile(toolchain, &wanted)) {
        let mut faults = faults(&variant.candidate, *arch, &cubin);
        // The divisions may cost a few registers.
        if cubin.report.spill_store_bytes > 32 {
            faults.push(format!("{:?}", cubin.report));
        }
        faults.iter().for_each(|fault| writeln!(wrong, "{} {arch}: {fault}", variant.name).unwrap());
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// Whatever a declaration computes its blocks along y with is CUDA as well.
fn folded_grids_of_any_expression_compile(toolchain: &Toolchain) {
    let expressions = [
        "a * b / R",
        "ceil_div(a, ceil_div(b, R))",
        "min(a, 4) + max(a < b, 3000000000)",
        "(a < b) + (a && b % 3 != 1 || R == 16)",
        "if a > b { a - b } else if b { R } else { 1 }",
    ];
    let wanted = expressions.map(|expression| {
        let declaration = format!(
            "kernel! {{ fn edges(x: out Tensor<f32, [a, b]>) specialize {{ R: [16] }}
            body sm80 {{ launch {{ grid = [a, {expression}, 1], threads = 32 }} }} }}"
        );
        let body = "extern \"C\" __global__ void TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
            p.x[0] = blockIdx.y;
        }";
        let source = KernelSource {
            name: "edges".into(),
            declaration: declaration.into(),
            files: vec![("edges/sm80.cu".into(), body.into())].into(),
            has_check: false,
        };
        let generator = Generator::new(&source).unwrap();
        let spec = Arc::new(generator.spec(&[("R", 16.into())]).unwrap());
        let candidate = &generator.candidates(&spec, Arch::Sm80).unwrap().accepted[0];
        (generator.render(candidate).unwrap().folded().unwrap(), Arch::Sm80)
    });
    for ((expression, (variant, arch)), cubin) in
        expressions.iter().zip(&wanted).zip(compile(toolchain, &wanted))
    {
        assert_eq!(faults(&variant.candidate, *arch, &cubin), [] as [&str; 0], "{expression}");
    }
}

/// A spec on an architecture, with the candidates that were not tried yet.
struct Search<'a> {
    generator: &'a Generator,
    arch: Arch,
    candidates: std::vec::IntoIter<Candidate>,
}

impl<'a> Search<'a> {
    fn new(generator: &'a Generator, spec: KernelSpec, arch: Arch) -> Self {
        let found = generator.candidates(&Arc::new(spec), arch).unwrap();
        Search { generator, arch, candidates: found.accepted.into_iter() }
    }
}

/// Tries the candidates of each search in order until one does not spill, as loading does. A spec whose first candidate
/// spills costs its users a compilation, so those are printed; a spec of which all spill cannot be used at all.
fn settle(toolchain: &Toolchain, mut searches: Vec<Search>) {
    let (mut wrong, mut slow) = (String::new(), String::new());
    while !searches.is_empty() {
        let wanted: Vec<(Variant, Arch)> = (searches.iter_mut())
            .map(|search| {
                let candidate = search.candidates.next().expect("a search goes on while it has candidates");
                (search.generator.render(&candidate).unwrap(), search.arch)
            })
            .collect();
        let cubins = compile(toolchain, &wanted);
        let mut left = Vec::new();
        for ((search, (variant, arch)), cubin) in searches.into_iter().zip(&wanted).zip(cubins) {
            for fault in faults(&variant.candidate, *arch, &cubin) {
                writeln!(wrong, "{} {arch}: {fault}", variant.name).unwrap();
            }
            if !cubin.report.spills() {
                continue;
            }
            let bytes = cubin.report.spill_store_bytes;
            writeln!(slow, "{} {arch}: {bytes} bytes spilled", variant.name).unwrap();
            match search.candidates.len() {
                0 => writeln!(wrong, "{} {arch}: every candidate spills", variant.name).unwrap(),
                _ => left.push(search),
            }
        }
        searches = left;
    }
    if !slow.is_empty() {
        eprintln!("candidates that spill and are passed over:\n{slow}");
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// Whatever a caller may ask for, there is a schedule that fits: on the architectures with the least shared memory too.
fn every_spec_fits_every_architecture() {
    for generator in kernels() {
        for spec in generator.every_spec().into_iter().map(Arc::new) {
            for arch in Arch::SHIPPED {
                let accepted = generator.candidates(&spec, arch).unwrap().accepted;
                let (kernel, values) = (spec.kernel(), spec.values());
                assert!(!accepted.is_empty(), "{kernel} {values:?} on {}: nothing fits", arch.name());
            }
        }
    }
}

/// Which architectures a spec is compiled for: one of two, by turns that give either every value of every parameter; both where
/// `TILEWRIGHT_TEST_ALL` is set, which takes minutes more.
fn archs_of(i: usize) -> &'static [Arch] {
    const BOTH: [Arch; 2] = [Arch::Sm80, Arch::Sm90a];
    if std::env::var_os("TILEWRIGHT_TEST_ALL").is_some() {
        return &BOTH;
    }
    let turn = i.count_ones() as usize % 2;
    &BOTH[turn..turn + 1]
}

fn every_spec_has_a_candidate_without_spills(toolchain: &Toolchain) {
    let generators = kernels();
    let searches = generators.iter().flat_map(|generator| {
        generator.every_spec().into_iter().enumerate().flat_map(move |(i, spec)| {
            archs_of(i).iter().map(move |&arch| Search::new(generator, spec.clone(), arch))
        })
    });
    settle(toolchain, searches.collect());
}

fn kernels_with_functions_have_a_candidate_without_spills(toolchain: &Toolchain) {
    let scores: [Box<dyn DeviceFn>; 2] = [Box::new(softcap { cap: 30.0 }), Box::new(alibi { heads: 12 })];
    let masks: [Box<dyn DeviceFn>; 3] =
        [Box::new(causal {}), Box::new(sliding_window { window: 64 }), Box::new(document { doc: vec![0] })];
    let generators = kernels();
    let mut searches = Vec::new();
    for generator in &generators {
        let slot = |name: &str| generator.kernel().functions.iter().any(|slot| slot.name == name);
        let scores: &[_] = if slot("score_mod") { &scores } else { &[] };
        let masks: &[_] = if slot("mask_mod") { &masks } else { &[] };
        for spec in generator.shipped_specs().unwrap().into_iter().map(Arc::unwrap_or_clone) {
            // What a score function makes of means is not defined.
            let scores = if spec.int("TAIL").is_some_and(|tail| tail != 0) { &[] } else { scores };
            let score = |spec, f: &dyn DeviceFn| with(spec, "score_mod", FunctionKind::ScoreMod, f);
            let mask = |spec, f: &dyn DeviceFn| with(spec, "mask_mod", FunctionKind::MaskMod, f);
            let mut specs: Vec<KernelSpec> = scores.iter().map(|f| score(spec.clone(), &**f)).collect();
            specs.extend(masks.iter().map(|f| mask(spec.clone(), &**f)));
            if let ([softcap, ..], [.., document]) = (scores, masks) {
                specs.push(mask(score(spec, &**softcap), &**document));
            }
            for (i, spec) in specs.into_iter().enumerate() {
                let search = |&arch| Search::new(generator, spec.clone(), arch);
                searches.extend(archs_of(i + searches.len()).iter().map(search));
            }
        }
    }
    settle(toolchain, searches);
}

/// Functions nobody would write: every one that parses compiles, and so does its derivative.
fn random_functions_compile(toolchain: &Toolchain) {
    let mut tape = Tape(1);
    for kind in [FunctionKind::ScoreMod, FunctionKind::MaskMod] {
        let (mut functors, mut calls) = (String::new(), String::new());
        for at in 0..40 {
            let bytes: Vec<u8> = (0..20 + 5 * at).map(|_| tape.byte()).collect();
            let (text, _) = grow(kind, Methods::All, &bytes);
            let function = DeviceFunction::from_source(kind, &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            writeln!(functors, "namespace f{at} {{ // {text}\n{}\n}}", function.cuda_with_gradient())
                .unwrap();
            let (functor, score) = match kind {
                FunctionKind::ScoreMod => ("ScoreMod", "out[i], "),
                FunctionKind::MaskMod => ("MaskMod", ""),
            };
            let functor = format!("(*static_cast<const f{at}::{functor}*>(captures))");
            let position = "blockIdx.z, blockIdx.y, blockIdx.x, i";
            writeln!(calls, "    out[i] = {functor}({score}{position});").unwrap();
            if kind == FunctionKind::ScoreMod {
                writeln!(calls, "    out[i] = {functor}.gradient({score}{position});").unwrap();
            }
        }
        let source = format!(
            "#define TILEWRIGHT_OFFSETOF(type, member) __INTADDR__(&((type*)0)->member)\n{DEVICE_PRELUDE}\n{functors}\n\
             extern \"C\" __global__ void functions(volatile float* out, const void* captures) {{\n    \
             const int i = threadIdx.x;\n{calls}}}\n"
        );
        for arch in [Arch::Sm80, Arch::Sm90a] {
            let cubin = toolchain.compile("functions", &source, arch.name());
            assert!(cubin.unwrap_or_else(|error| panic!("{error}")).is_whole());
        }
    }
}

/// Bytes that are the same on every run.
struct Tape(u64);

impl Tape {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 56) as u8
    }
}
