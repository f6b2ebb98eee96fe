//! The subcommands.

use super::support::*;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tilewright::cache::KernelCache;

fn run(cache: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilewright"));
    command.args(arguments).env("TILEWRIGHT_CACHE", cache).output().expect("the command starts")
}

fn json(cache: &Path, arguments: &[&str]) -> Value {
    let output = run(cache, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

fn length(value: &Value) -> usize {
    value.as_array().expect("a list").len()
}

#[test]
fn a_cache_is_exported_and_imported() {
    let (dir, cache) = cache();
    kernel(0).put(&cache);
    kernel_of("pool", "sm_80", 400).put(&cache);
    write_record(&cache, &record("sm_90a", &[("a", 1.0)]));
    let (file, target) = (dir.path().join("bundle.tar.zst"), dir.path().join("target"));
    let file = file.to_str().unwrap();

    let exported = json(cache.root(), &["export", file, "--arch", "sm_90a"]);
    assert_eq!((length(&exported["kernels"]), length(&exported["records"])), (1, 1));
    assert_eq!(exported["kernels"][0]["name"], "kernel0");
    let text = run(cache.root(), &["export", file]);
    let said = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.status.success() && said.contains("2 kernels and 1 tuning records"), "{said}");

    let imported = json(&target, &["import", file]);
    assert_eq!((length(&imported["added"]), length(&imported["added_records"])), (2, 1));
    let again = json(&target, &["import", file]);
    assert_eq!((length(&again["present"]), length(&again["added"])), (2, 0));
    assert!(kernel(0).is_in(&KernelCache::at(&target).unwrap()));
}

#[test]
fn what_cannot_be_done_is_said() {
    let (dir, cache) = cache();
    let file = dir.path().join("bundle");
    let file = file.to_str().unwrap();
    let fails = |arguments: &[&str], says: &[&str]| {
        let output = run(cache.root(), arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("error: ") && output.stdout.is_empty(), "{said}");
        says.iter().for_each(|part| assert!(said.contains(part), "{part:?} in {said}"));
    };
    fails(&["export", file], &["holds nothing", "compile --bundle"]);
    fails(&["import", file], &["could not open", file]);
    std::fs::write(file, "not a bundle").unwrap();
    fails(&["import", file], &["was refused", "nothing of it imported", "no bundle"]);
}
