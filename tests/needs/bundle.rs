//! Bundles of kernels that NVRTC has made.

#[path = "../bundle/support.rs"]
#[allow(dead_code, reason = "the tests of bundles use the rest")]
mod support;

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use support::cache;
use tilewright::bundle::{Contents, export, import};
use tilewright::cache::{CubinKey, KernelCache};
use tilewright::compile::OPTIONS;
use tilewright::toolchain::Toolchain;

pub const TESTS: &[crate::needs::Test<Toolchain>] = &[
    (
        "bundle::kernels_are_compiled_into_a_bundle_without_a_gpu",
        kernels_are_compiled_into_a_bundle_without_a_gpu,
    ),
    ("bundle::real_cubins_travel", real_cubins_travel),
];

fn json(cache: &Path, arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilewright"));
    command.args(arguments).arg("--json").env("TILEWRIGHT_CACHE", cache);
    let output = command.output().expect("the command starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

fn length(value: &Value) -> usize {
    value.as_array().expect("a list").len()
}

fn kernels_are_compiled_into_a_bundle_without_a_gpu(_: &Toolchain) {
    let dir = tempfile::tempdir().unwrap();
    let (own, target) = (dir.path().join("own"), dir.path().join("target"));
    let file = dir.path().join("bundle.tar.zst");
    let file = file.to_str().unwrap();
    let arguments = ["compile", "--arch", "sm_90a,sm_120a", "--kernel", "select", "--bundle", file];
    let compiled = json(&own, &arguments);
    assert_eq!(compiled["failed"], 0);
    assert_eq!(length(&compiled["bundle"]["kernels"]), 2);
    assert!(!own.exists(), "the user's cache is not touched");

    let imported = json(&target, &["import", file]);
    assert_eq!(length(&imported["added"]), 2);
    let generator = tilewright::codegen::Generator::new(&tilewright::kernels::select::SOURCE).unwrap();
    let variant = generator.shipped().unwrap().remove(0);
    let cache = KernelCache::at(&target).unwrap();
    for arch in ["sm_90a", "sm_120a"] {
        assert!(
            cache.find(&variant.name, arch, &variant.source, |_| true).is_some(),
            "as a machine without NVRTC asks"
        );
    }
}

fn real_cubins_travel(toolchain: &Toolchain) {
    let (dir, cache) = cache();
    let source = "extern \"C\" __global__ void scale(float* x) { x[threadIdx.x] *= 2.0f; }";
    let keys = ["sm_80", "sm_90a"].map(|arch| {
        let cubin = toolchain.compile("scale", source, arch).unwrap();
        let key = CubinKey::new("scale", arch, source, OPTIONS, toolchain.version());
        cache.put(&key, source, &cubin).unwrap();
        (key, cubin)
    });
    let path = dir.path().join("bundle");
    export(&cache, &Contents::Everything, &path).unwrap();
    let (_to, target) = support::cache();
    // SAFETY: the bundle was exported above.
    assert_eq!(unsafe { import(&target, &path) }.unwrap().added.len(), 2);
    for (key, cubin) in keys {
        assert_eq!(target.get(&key).unwrap().bytes(), cubin.bytes());
        // As a machine without NVRTC asks.
        assert_eq!(target.find("scale", key.arch(), source, |_| true).unwrap().report, cubin.report);
    }
}
