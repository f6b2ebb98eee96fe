//! One function for each kind of text or file that comes from outside. Whatever it is given, it returns: an error of the
//! library is a result, a panic, a stack that overflows or a minute without an answer is a finding.

use std::fs;
use std::path::Path;
use tilewright::bundle::import;
use tilewright::cache::{KernelCache, parse_size};
use tilewright::codegen::lower::{CaptureType, CaptureValue, DeviceFunction, FunctionKind};
use tilewright::codegen::{Arch, Generator, KernelSource, Machine, bindings};
use tilewright::tune::{Bucket, DeviceKey, Policy, TuneKey, TuneRecord};

/// What is done with an input.
type Target = fn(&[u8]);

/// The name of every target with its function.
pub const TARGETS: &[(&str, Target)] = &[
    ("device_function", device_function),
    ("declaration", declaration),
    ("run_header", run_header),
    ("bundle", bundle),
    ("cache_entry", cache_entry),
    ("tuning_record", tuning_record),
    ("shape", shape),
    ("inspect", inspect),
];

/// A device function from text: checked, printed, differentiated, run.
pub fn device_function(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for kind in [FunctionKind::ScoreMod, FunctionKind::MaskMod] {
        let Ok(function) = DeviceFunction::from_source(kind, text) else { continue };
        assert!(function.cuda_with_gradient().len() >= function.cuda().len());
        let value = |ty| match ty {
            CaptureType::F32 => CaptureValue::F32(1.5),
            CaptureType::I32 => CaptureValue::I32(-3),
            CaptureType::U32 => CaptureValue::U32(7),
            CaptureType::Bool => CaptureValue::Bool(true),
            CaptureType::F32s => CaptureValue::F32s(vec![0.5, f32::NAN]),
            CaptureType::I32s => CaptureValue::I32s(vec![i32::MIN, 2]),
            CaptureType::U32s => CaptureValue::U32s(Vec::new()),
        };
        let captures: Vec<CaptureValue> =
            function.captures().iter().map(|capture| value(capture.ty)).collect();
        for score in [0.0, -1.5, 1e30, f32::NEG_INFINITY, f32::NAN] {
            for at in [0, 5, i32::MAX, i32::MIN] {
                function.eval(score, 0, 1, at, 3, &captures).expect("its own captures");
                function.gradient(score, 0, 1, at, 3, &captures).expect("its own captures");
            }
        }
        let slices = captures.iter().filter(|capture| capture.slice_len().is_some()).count();
        function.pack(&captures, &vec![0; slices]).expect("its own captures");
    }
}

/// A kernel's declaration: parsed, its bindings written and read again, its candidates ranked.
pub fn declaration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(kernel) = tilewright::codegen::dsl::Kernel::parse("x/kernel.rs", text) else { return };
    let body = |body: &tilewright::codegen::dsl::Body| {
        (format!("{}/{}.cu", kernel.name, body.family).into(), "// nothing\n".into())
    };
    let source = KernelSource {
        name: kernel.name.clone().into(),
        declaration: text.to_owned().into(),
        files: kernel.bodies.iter().map(body).collect::<Vec<_>>().into(),
        has_check: false,
    };
    let generator = Generator::new(&source).expect("it has just been parsed");
    assert!(bindings(&source).expect("it has just been parsed").contains("impl KernelArgs for Args"));
    // A declaration may ask for more than a minute's worth of kernels; one of each is enough.
    let Ok(specs) = generator.shipped_specs() else { return };
    for (spec, arch) in specs.iter().take(2).flat_map(|spec| [(spec, Arch::Sm80), (spec, Arch::Sm90a)]) {
        let Ok(candidates) = generator.candidates(spec, arch) else { continue };
        let some: Vec<_> = candidates.accepted.iter().take(100).collect();
        let dims: Vec<(&str, i64)> = kernel.dims().into_iter().map(|dim| (dim, i64::MAX / 3)).collect();
        let machine = Machine { limits: arch.limits(), sm_count: 132 };
        assert_eq!(generator.rank(&some, &machine, &dims).len(), some.len());
        generator.render(some[0]).expect("the body is a comment");
    }
}

/// Runs a command line in this process.
fn command(line: &[&str]) {
    let _ = tilewright::cli::quietly(&[&["tilewright"], line].concat());
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// A safetensors file, such as `run` reads.
pub fn run_header(data: &[u8]) {
    let folder = folder();
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    fs::write(&input, data).expect("the folder is ours");
    for layout in ["bhsd", "bshd"] {
        let files = ["--input", text_of(&input), "--output", text_of(&output)];
        command(&[&["run", "--device", "cpu", "--layout", layout, "--top-k", "0.5"], &files[..]].concat());
    }
}

/// A bundle, imported into an empty cache.
pub fn bundle(data: &[u8]) {
    let folder = folder();
    let file = folder.path().join("x.tar.zst");
    fs::write(&file, data).expect("the folder is ours");
    let cache = KernelCache::at(&folder.path().join("cache")).expect("the folder is ours");
    // SAFETY: nothing that it brings is run.
    if let Err(error) = unsafe { import(&cache, &file) } {
        assert!(!error.to_string().is_empty());
    }
    cache.verify();
}

/// What an entry of the cache says about itself.
pub fn cache_entry(data: &[u8]) {
    let folder = folder();
    let cache = KernelCache::at(folder.path()).expect("the folder is ours");
    let entry = folder.path().join("v1/sm_90a/forward_sm90-0123456789abcdef0123456789abcdef");
    fs::create_dir_all(&entry).expect("the folder is ours");
    for (file, text) in [("meta.json", data), ("source.cu", b"// nothing\n"), ("kernel.cubin", b"\x7fELF")] {
        fs::write(entry.join(file), text).expect("the folder is ours");
    }
    cache.entries();
    cache.verify();
    cache.prune(0).expect("the folder is ours");
}

/// A tuning record.
pub fn tuning_record(data: &[u8]) {
    let device =
        DeviceKey { arch: "sm_90a".into(), name: "NVIDIA H200".into(), sm_count: 132, memory_clock: 32 };
    let bucket = Bucket { seq_q: 29, seq_kv: 29, heads: 3, density: 1 };
    let key = TuneKey { spec: "forward-0123456789abcdef".into(), device, bucket };
    let Ok(record) = TuneRecord::parse(data, &key) else { return };
    assert!(TuneRecord::parse(&record.to_json(), &key).is_ok());
    assert!(!record.explain(&[]).is_empty());
    record.plot(&[]);
}

/// Shapes, sizes, architectures and policies as people write them.
pub fn shape(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    parse_size(text);
    let _ = (text.parse::<Arch>(), text.parse::<Policy>());
    command(&["tune", text, "--density", "0.1"]);
}

/// A kernel and a spec for `inspect`, on two lines.
pub fn inspect(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (kernel, rest) = text.split_once('\n').unwrap_or((text, ""));
    let (spec, candidate) = rest.split_once('\n').unwrap_or((rest, "0"));
    command(&["inspect", kernel, "--spec", spec, "--candidate", candidate.trim()]);
}
