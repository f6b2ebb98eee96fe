//! Specs, architectures, candidates and templates: what is refused, and in which words.

mod support;

use std::sync::Arc;
use support::{BODY, DECLARATION, HEADER, source};
use tilewright_codegen::lower::{DeviceFunction, FunctionKind};
use tilewright_codegen::{Arch, DType, Error, Family, Generator, KernelSource, Value};

fn message<T>(result: Result<T, Error>) -> String {
    result.err().map(|error| error.to_string()).expect("an error")
}

#[test]
fn a_spec_has_one_allowed_value_for_every_parameter() {
    let generator = Generator::new(&source(DECLARATION, BODY)).unwrap();
    let t = ("T", Value::from(DType::F16));
    let block = ("BLOCK", Value::from(64));
    for (values, expected) in [
        (vec![t], "kernel `scale`: no value for `BLOCK`: give one of 64, 128"),
        (vec![t, ("BLOCK", 96.into())], "kernel `scale`: BLOCK = 96 is not supported: use one of 64, 128"),
        (
            vec![t, ("BLOCK", DType::F16.into())],
            "kernel `scale`: BLOCK = f16 is not supported: use one of 64, 128",
        ),
        (
            vec![("T", DType::F32.into()), block],
            "kernel `scale`: T = f32 is not supported: use one of f16, bf16",
        ),
        (vec![("T", 16.into()), block], "kernel `scale`: T = 16 is not supported: use one of f16, bf16"),
        (vec![t, block, ("D", 64.into())], "kernel `scale`: `D` is no parameter: it has T, BLOCK"),
        (vec![t, block, t], "kernel `scale`: `T` is given twice: give it once"),
    ] {
        assert_eq!(message(generator.spec(&values)), expected);
    }
    let spec = generator.spec(&[block, t]).unwrap();
    assert_eq!(spec.values().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["T", "BLOCK"]);
    assert_eq!((spec.int("BLOCK"), spec.dtype("T"), spec.int("T")), (Some(64), Some(DType::F16), None));
}

#[test]
fn values_that_go_together() {
    let specialize = "specialize { T: [f16, bf16], BLOCK: [64, 128], HALF: [32, 64, 128] = BLOCK / 2 }
    require HALF == BLOCK / 2 || HALF == 128 && BLOCK == 128, \"a half, or all of 128\";";
    let text = DECLARATION.replace("specialize { T: [f16, bf16], BLOCK: [64, 128] }", specialize);
    let generator = Generator::new(&source(&text, BODY)).unwrap();
    let with = |block: i64, half: &[i64]| {
        let half = half.iter().map(|&half| ("HALF", half.into()));
        let values: Vec<(&str, Value)> =
            [("T", DType::F16.into()), ("BLOCK", block.into())].into_iter().chain(half).collect();
        generator.spec(&values)
    };
    // Without a value it has its default, and names leave it out.
    let (left_out, given) = (with(64, &[]).unwrap(), with(64, &[32]).unwrap());
    assert_eq!(left_out.values(), given.values());
    let name = |spec| generator.candidates(&Arc::new(spec), Arch::Sm80).unwrap().accepted[0].name();
    assert_eq!(name(left_out), "scale_sm80_f16_block64_warps4");
    assert_eq!(name(with(128, &[128]).unwrap()), "scale_sm80_f16_block128_half128_warps4");
    assert_eq!(
        message(with(64, &[128])),
        "kernel `scale`: it needs HALF == BLOCK / 2 || HALF == 128 && BLOCK == 128, found HALF = 128, BLOCK = 64: \
         a half, or all of 128"
    );
    // A default that is none of the values says that nobody gave it.
    let text = text.replace("HALF: [32, 64, 128]", "HALF: [32, 128]");
    let without = Generator::new(&source(&text, BODY)).unwrap();
    assert_eq!(
        message(without.spec(&[("T", DType::F16.into()), ("BLOCK", 128.into())])),
        "kernel `scale`: HALF = 64, its default BLOCK / 2, is not supported: give one of 32, 128"
    );
    let every: Vec<_> =
        generator.every_spec().iter().map(|spec| (spec.int("BLOCK"), spec.int("HALF"))).collect();
    assert_eq!(every[..3], [(Some(64), Some(32)), (Some(128), Some(64)), (Some(128), Some(128))]);
    assert_eq!(every.len(), 6);
    // What `ship` does not name ships its default.
    assert_eq!(
        generator.shipped_specs().unwrap().iter().map(|spec| spec.int("HALF")).collect::<Vec<_>>(),
        [Some(32)]
    );
}

#[test]
fn functions_go_where_the_declaration_has_a_slot_for_them() {
    let causal = "fn causal(b: i32, h: i32, q: i32, kv: i32) -> bool { q >= kv }";
    let causal = Arc::new(DeviceFunction::from_source(FunctionKind::MaskMod, causal).unwrap());
    let generator = Generator::new(&source(DECLARATION, BODY)).unwrap();
    let spec = generator.spec(&[("T", DType::F16.into()), ("BLOCK", 64.into())]).unwrap();
    assert_eq!(
        message(spec.clone().with_function("mask_mod", causal.clone())),
        "kernel `scale`: it calls no device function `mask_mod`: declare it in `functions`"
    );
    assert_eq!(
        message(spec.with_function("score_mod", causal)),
        "kernel `scale`: `score_mod` takes a score_mod, found the mask_mod `causal`"
    );
}

/// The variant's name is a symbol of C whatever the function is called.
#[test]
fn names_of_functions_become_symbols() {
    let generator = Generator::new(&source(DECLARATION, BODY)).unwrap();
    let text = "fn r#struct(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 { score }";
    let function = DeviceFunction::from_source(FunctionKind::ScoreMod, text).unwrap();
    let spec = generator.spec(&[("T", DType::F16.into()), ("BLOCK", 64.into())]).unwrap();
    let spec = Arc::new(spec.with_function("score_mod", function.into()).unwrap());
    for candidate in generator.candidates(&spec, Arch::Sm80).unwrap().accepted {
        let name = candidate.name();
        assert!(name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_'), "{name}");
    }
}

/// A body may have other values on some architectures, and where it says nothing of a parameter those of `tune`.
#[test]
fn tuning_spaces_may_differ_by_architecture() {
    let text = DECLARATION.replace(
        "tune { WARPS: [4, 8] }",
        "tune { WARPS: [4, 8], STAGES: [3, 2] }
        tune on sm_86, sm_120a { STAGES: [1] }
        tune on sm_86 { WARPS: 1..=3 }",
    );
    let generator = Generator::new(&source(&text, BODY)).unwrap();
    let spec = Arc::new(generator.spec(&[("T", DType::Bf16.into()), ("BLOCK", 64.into())]).unwrap());
    let schedules = |arch| {
        let accepted = generator.candidates(&spec, arch).unwrap().accepted;
        let values = |candidate: &tilewright_codegen::Candidate| {
            ["WARPS", "STAGES"].map(|name| candidate.schedule.get(name).unwrap())
        };
        accepted.iter().map(values).collect::<Vec<_>>()
    };
    for arch in Arch::ALL {
        let expected = match arch.name() {
            "sm_86" => vec![[1, 1], [2, 1], [3, 1]],
            "sm_120a" => vec![[4, 1], [8, 1]],
            _ => vec![[4, 3], [4, 2], [8, 3], [8, 2]],
        };
        assert_eq!(schedules(arch), expected, "{arch}");
    }
}

/// Table of technical specifications by compute capability, CUDA C++ Programming Guide.
#[test]
fn architectures_have_the_limits_of_the_programming_guide() {
    for arch in Arch::ALL {
        let limits = arch.limits();
        let (smem, threads) = match arch.name() {
            "sm_80" | "sm_87" => (164, 2048),
            "sm_86" | "sm_89" | "sm_120a" | "sm_121a" => (100, 1536),
            "sm_90a" | "sm_100a" | "sm_103a" => (228, 2048),
            other => panic!("look up what {other} has"),
        };
        assert_eq!((limits.smem_per_sm, limits.smem_per_block), (smem << 10, (smem - 1) << 10), "{arch}");
        assert_eq!((limits.threads_per_sm, limits.threads_per_block), (threads, 1024), "{arch}");
        assert_eq!((limits.registers_per_thread, limits.registers_per_sm), (255, 65536), "{arch}");
    }
    let shipped = Arch::SHIPPED.map(Arch::name).to_vec();
    assert_eq!(shipped, ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"]);
}

#[test]
fn architectures_are_read_in_every_spelling() {
    for arch in Arch::ALL {
        assert_eq!(arch.name().parse::<Arch>().unwrap(), arch);
        assert_eq!(arch.name().replace('_', "").to_uppercase().parse::<Arch>().unwrap(), arch);
        assert_eq!(arch.name().trim_end_matches('a').parse::<Arch>().unwrap(), arch);
        let digits = arch.name().trim_start_matches("sm_").trim_end_matches('a');
        let (major, minor) = digits.split_at(digits.len() - 1);
        let known = Arch::from_compute_capability(major.parse().unwrap(), minor.parse().unwrap());
        assert_eq!(known, Some(arch));
        assert!(arch.runs(Family::Sm80));
    }
    assert!(Arch::Sm90a.runs(Family::Sm90) && !Arch::Sm100a.runs(Family::Sm90));
    for family in Family::ALL {
        assert_eq!(Family::from_name(family.name()), Some(family));
        assert_eq!(serde_json::to_string(&family).unwrap(), format!("\"{family}\""));
        assert!(Arch::ALL.into_iter().any(|arch| arch.runs(family)));
    }
    for text in ["sm_70", "sm_80a", "90", "", "a", "compute_90a", "sm_90af", "hopper"] {
        assert_eq!(
            message(text.parse::<Arch>()),
            format!(
                "unknown architecture `{text}`: use one of \
                 sm_80, sm_86, sm_87, sm_89, sm_90a, sm_100a, sm_103a, sm_120a, sm_121a"
            )
        );
    }
    for (major, minor) in [(7, 5), (8, 8), (9, 9), (0, 0), (-1, 0)] {
        assert_eq!(Arch::from_compute_capability(major, minor), None);
    }
}

#[test]
fn a_kernel_without_a_schedule_says_why() {
    let declare = |clause: &str| {
        let text = DECLARATION.replace("smem_bytes = 4 * BLOCK * WARPS", clause);
        let generator = Generator::new(&source(&text, BODY)).unwrap();
        let spec = generator.spec(&[("T", DType::F16.into()), ("BLOCK", 64.into())]).unwrap();
        message(generator.candidates(&Arc::new(spec), Arch::Sm86))
    };
    let no_schedule = |reasons: &str| {
        let reason = |warps| format!("sm80 warps={warps}: {}", reasons.replace('#', warps));
        format!("kernel `scale` has no schedule that fits sm_86: {}; {}", reason("4"), reason("8"))
    };
    for (clause, reasons) in [
        ("smem_bytes = 2000 * BLOCK", "shared memory: 128000 bytes, limit 101376"),
        ("smem_bytes = 4 - BLOCK", "smem_bytes is -60: `4 - BLOCK`"),
        ("smem_bytes = 4 / (BLOCK - 64)", "`4 / (BLOCK - 64)` divides by zero or overflows"),
        (
            "smem_bytes = 9223372036854775807 * BLOCK",
            "`9223372036854775807 * BLOCK` divides by zero or overflows",
        ),
        ("registers = 256", "registers: about 256 a thread, limit 255"),
        ("BLOCK % (48 * WARPS) == 0", "BLOCK % (48 * WARPS) == 0 does not hold (BLOCK = 64, WARPS = #)"),
    ] {
        assert_eq!(declare(clause), no_schedule(reasons));
    }

    let threads = DECLARATION.replace("32 * WARPS", "512 * WARPS");
    let generator = Generator::new(&source(&threads, BODY)).unwrap();
    let spec = generator.spec(&[("T", DType::F16.into()), ("BLOCK", 64.into())]).unwrap();
    assert_eq!(
        message(generator.candidates(&Arc::new(spec), Arch::Sm80)),
        "kernel `scale` has no schedule that fits sm_80: sm80 warps=4: threads: 2048 a block, limit 1024; \
         sm80 warps=8: threads: 4096 a block, limit 1024"
    );
}

#[test]
fn a_body_runs_where_its_family_does() {
    let hopper = DECLARATION.replace("body sm80", "body sm90");
    let files = vec![("scale/sm90.cu".into(), BODY.into()), ("scale/load.cuh".into(), HEADER.into())];
    let source = KernelSource {
        name: "scale".into(),
        declaration: hopper.into(),
        files: files.into(),
        has_check: false,
    };
    let generator = Generator::new(&source).unwrap();
    let spec = generator.spec(&[("T", DType::F16.into()), ("BLOCK", 64.into())]).unwrap();
    let spec = Arc::new(spec);
    assert_eq!(
        message(generator.candidates(&spec, Arch::Sm80)),
        "kernel `scale` has no body for sm_80: it has bodies for sm90"
    );
    assert!(generator.candidates(&spec, Arch::Sm90a).is_ok());
    // What a kernel ships is for the architectures it runs on.
    assert!(!generator.shipped().unwrap().is_empty());
}

#[test]
fn a_folder_has_the_kernel_s_name_and_its_bodies() {
    let good = source(DECLARATION, BODY);
    let renamed = KernelSource { name: "other".into(), ..good.clone() };
    assert_eq!(
        message(Generator::new(&renamed)),
        "kernel `scale`: its folder is named `other`: give both one name"
    );
    let empty = KernelSource { files: Vec::new().into(), ..good };
    assert_eq!(
        message(Generator::new(&empty)),
        "kernel `scale`: `body sm80` is declared but scale/sm80.cu is missing: write it"
    );
}

#[test]
fn a_broken_template_is_named_with_its_line() {
    let mut report = String::new();
    for (mistake, body) in [
        ("an unknown variable", "int a;\nint b = $( missing )$;\n"),
        ("an unclosed block", "int a;\n<% if family %>\nint b;\n"),
        ("an unknown block", "int a;\n<% macro x %>\n"),
        ("a variable that is not closed", "int a;\nint b = $( variant ;\n"),
        ("a missing include", "int a;\n<% include \"lib/missing.cuh\" %>\n"),
        ("an include that is not closed", "int a;\n<% include \"lib/warp.cuh\" >\n"),
        ("an unknown filter", "int a;\nint b = $( variant | shout )$;\n"),
    ] {
        let error = Generator::new(&source(DECLARATION, body))
            .and_then(|generator| generator.shipped())
            .expect_err(mistake);
        let Error::Template { template, .. } = &error else { panic!("{mistake}: {error:?}") };
        assert_eq!(template, "scale/sm80.cu", "{mistake}");
        report += &format!("# {mistake}\n{error}\n\n");
    }
    insta::assert_snapshot!("templates", report);
}

#[test]
fn folders_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let error = message(KernelSource::read_all(&missing));
    assert!(error.starts_with(&format!("reading {}: ", missing.display())), "{error}");
    let error = message(KernelSource::read_all(folder.path()));
    assert_eq!(
        error,
        format!(
            "{} holds no kernel: make a folder in it with a kernel.rs and its bodies",
            folder.path().display()
        )
    );
    let kernel = folder.path().join("scale");
    std::fs::create_dir(&kernel).unwrap();
    std::fs::write(kernel.join("kernel.rs"), b"\xff").unwrap();
    let error = message(KernelSource::read(folder.path(), "scale"));
    assert!(error.starts_with(&format!("reading {}: ", kernel.join("kernel.rs").display())), "{error}");
}

/// Where schedules may differ as they like, something has to tell right results from wrong ones.
#[test]
fn results_that_may_be_anything_have_a_check() {
    let any = DECLARATION.replace("y: out Tensor", "#[tolerance(any)] y: out Tensor");
    let mut source = source(&any, BODY);
    assert_eq!(
        message(Generator::new(&source)),
        "kernel `scale`: schedules may differ in `y` as they like (`#[tolerance(any)]`), and the folder has no check.rs that would tell \
         right results from wrong ones: write it, or give the tensor a bound"
    );
    // Of one schedule there is nothing to choose.
    source.declaration = any.replace("WARPS: [4, 8]", "WARPS: [4]").into();
    assert!(Generator::new(&source).is_ok());
    source.declaration = any.into();
    source.has_check = true;
    assert!(Generator::new(&source).is_ok());
}
