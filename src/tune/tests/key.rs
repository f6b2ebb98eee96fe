use super::fake::{device, tune_key};
use crate::codegen::{DType, Generator, KernelSource, KernelSpec, Value};
use crate::tune::*;

fn bucket(seq: usize, heads: usize, density: f64) -> Bucket {
    Bucket::of(&Workload { batch: 1, heads, seq_q: seq, seq_kv: seq, density })
}

#[test]
fn buckets_grow_with_the_sizes() {
    let mut before = bucket(0, 0, 0.0);
    for n in 1..100_000usize {
        let bucket = bucket(n, n, n as f64 / 1e5);
        assert!(bucket.seq_q >= before.seq_q && bucket.heads >= before.heads);
        assert!(bucket.density >= before.density);
        assert!(bucket.seq_q - before.seq_q <= 2);
        before = bucket;
    }
}

#[test]
fn buckets_are_half_octaves_octaves_and_bands() {
    // 32 760 is 2^14.9997, 75 600 is 2^16.2, 17 776 is 2^14.1.
    assert_eq!(bucket(32_760, 12, 0.05), Bucket { seq_q: 29, seq_kv: 29, heads: 3, density: 1 });
    assert_eq!(bucket(75_600, 10, 0.05).seq_q, 32);
    assert_eq!(bucket(17_776, 30, 0.05), Bucket { seq_q: 28, seq_kv: 28, heads: 4, density: 1 });
    assert_eq!(bucket(32_767, 1, 1.0).seq_q, 29);
    assert_eq!(bucket(32_768, 1, 1.0).seq_q, 30);
    let bands = [0.0, 0.0299, 0.03, 0.0699, 0.07, 0.15, 0.35, 0.7, 1.0, 7.0, f64::NAN];
    let found = bands.map(|density| bucket(1, 1, density).density);
    assert_eq!(found, [0, 0, 1, 1, 2, 3, 4, 5, 5, 5, 5]);
    let huge = Workload { batch: usize::MAX, heads: usize::MAX, seq_q: usize::MAX, seq_kv: 0, density: -1.0 };
    assert_eq!(Bucket::of(&huge), Bucket { seq_q: 127, seq_kv: 0, heads: 127, density: 0 });
}

#[test]
fn a_bucket_says_what_is_in_it() {
    let text = "queries 23171–32767, keys 23171–32767, heads × batch 8–15, density 3–7 %";
    assert_eq!(bucket(32_760, 12, 0.05).to_string(), text);
    for n in [1, 2, 3, 100, 23_170, 23_171] {
        let text = bucket(n, 1, 0.0).to_string();
        let range = text.strip_prefix("queries ").and_then(|rest| rest.split(',').next()).unwrap();
        let (first, last) = range.split_once('–').unwrap();
        assert!((first.parse().unwrap()..=last.parse().unwrap()).contains(&n), "{n}: {text}");
    }
    let strange = Bucket { seq_q: u32::MAX, seq_kv: u32::MAX, heads: u32::MAX, density: u32::MAX };
    assert!(!strange.to_string().is_empty());
}

#[test]
fn file_names_are_stable_and_safe() {
    // Names on users' disks: a change here forgets every record there is.
    assert_eq!(device().folder_name(), "sm_90a-nvidia-h200-132sm-m32");
    insta::assert_snapshot!(tune_key().file_name());
    let name = "../../NVIDIA \"RTX\" 6000\\Ada/…".to_owned();
    let hostile = DeviceKey { name, ..device() };
    assert_eq!(hostile.folder_name(), "sm_90a-nvidia-rtx-6000-ada-132sm-m32");
    assert_eq!(DeviceKey { name: "…".into(), ..device() }.folder_name(), "sm_90a-unnamed-132sm-m32");
}

#[test]
fn every_part_of_a_key_counts() {
    let key = tune_key();
    let mut others = vec![key.clone(); 7];
    others[0].spec.push('0');
    others[1].device.name.push('X');
    others[2].device.sm_count += 1;
    others[3].device.memory_clock += 1;
    others[4].bucket.seq_kv += 1;
    others[5].bucket.density += 1;
    others[6].device.arch = "sm_90".into();
    for other in others {
        assert_ne!(other.hash(), key.hash());
    }
    assert_eq!(key.hash(), tune_key().hash());
    assert_eq!(key.kernel(), "forward");
}

fn spec(source: &KernelSource, d: i64) -> KernelSpec {
    let values = [("T", Value::DType(DType::Bf16)), ("D", Value::Int(d))];
    let values = values.into_iter().chain(["BLOCK_Q", "BLOCK_KV"].map(|name| (name, Value::Int(128))));
    let values: Vec<_> = values.collect();
    Generator::new(source).unwrap().spec(&values).unwrap()
}

#[test]
fn a_spec_fingerprint_covers_the_specialisation_and_the_sources() {
    let source = crate::kernels::pool::SOURCE.clone();
    let of = |source: &KernelSource, d| spec_fingerprint(source, &spec(source, d));
    let before = of(&source, 128);
    assert!(before.starts_with("pool-") && before.len() == "pool-".len() + 32, "{before}");
    assert_eq!(before, of(&source, 128));
    assert_ne!(before, of(&source, 64));
    let mut edited = source.clone();
    edited.files.to_mut()[0].1.to_mut().push_str("// faster\n");
    assert_ne!(before, of(&edited, 128));
    let of_shared = |edit: &str| {
        let mut shared = source.clone();
        let (_, text) = shared.files.to_mut().iter_mut().find(|(path, _)| path == "lib/head_dim.rs").unwrap();
        text.to_mut().push_str(edit);
        of(&shared, 128)
    };
    assert_eq!(before, of_shared(""));
    assert_ne!(before, of_shared("// more\n"));
    let mut beside = source.clone();
    beside.files.to_mut().push(("lib/others.rs".into(), "shared! {}".into()));
    assert_eq!(before, of(&beside, 128));
    let mut declared = source;
    declared.declaration.to_mut().push_str("// more\n");
    assert_ne!(before, of(&declared, 128));
}

#[test]
fn a_spec_fingerprint_covers_device_functions() {
    use crate::codegen::lower::{DeviceFunction, FunctionKind};
    let source = &crate::kernels::forward::SOURCE;
    let values =
        [("T", DType::Bf16.into()), ("D", 128.into()), ("BLOCK_Q", 128.into()), ("BLOCK_KV", 64.into())];
    let plain = Generator::new(source).unwrap().spec(&values).unwrap();
    let with = |body: &str| {
        let text = format!("fn f(score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {{ {body} }}");
        let function = DeviceFunction::from_source(FunctionKind::ScoreMod, &text).unwrap();
        spec_fingerprint(source, &plain.clone().with_function("score_mod", function.into()).unwrap())
    };
    assert_ne!(spec_fingerprint(source, &plain), with("score * 2.0"));
    assert_ne!(with("score * 3.0"), with("score * 2.0"));
}

#[test]
fn policies_are_parsed_by_name() {
    for policy in Policy::ALL {
        assert_eq!(policy.to_string().parse::<Policy>(), Ok(policy));
    }
    assert_eq!("First_Valid ".parse::<Policy>(), Ok(Policy::FirstValid));
    let error = "fastest".parse::<Policy>().unwrap_err().to_string();
    assert!(error.contains("`fastest`") && error.contains("tune, first-valid, cache-only"), "{error}");
}
