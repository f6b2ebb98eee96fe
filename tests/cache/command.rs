//! `tilewright cache`.

use crate::support::*;
use serde_json::{Value, json};
use std::fs;
use std::process::{Command, Output};
use tilewright::cache::KernelCache;

fn run(cache: &KernelCache, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilewright"));
    command.arg("cache").args(arguments).env("TILEWRIGHT_CACHE", cache.root());
    command.output().expect("the command starts")
}

fn text(cache: &KernelCache, arguments: &[&str]) -> String {
    let output = run(cache, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn json(cache: &KernelCache, arguments: &[&str]) -> Value {
    let output = run(cache, &[arguments, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

#[test]
fn the_command_shows_and_keeps_the_cache() {
    let (_dir, cache) = cache();
    for number in 0..3 {
        kernel_of(number, 50_000, (13, 0)).put(&cache);
    }
    cache.write_record("NVIDIA H100", "forward", b"{}").expect("it is written");
    assert_eq!(text(&cache, &["path"]).trim(), cache.root().display().to_string());
    assert_eq!(json(&cache, &["path"])["path"], cache.root().display().to_string());

    let list = text(&cache, &["list"]);
    for part in
        ["kernel2", "sm_90a", "13.0", "49.", "lately", "NVIDIA H100: forward", "3 kernels", "1 tuning record"]
    {
        assert!(list.contains(part), "{part} in {list}");
    }
    let list = json(&cache, &["list"]);
    assert_eq!(list["kernels"].as_array().map(Vec::len), Some(3));
    assert_eq!(list["kernels"][1]["hash"], kernel_of(1, 50_000, (13, 0)).key.hash());
    assert_eq!(list["kernels"][1]["ptxas"]["registers"], 101);
    assert_eq!(list["records"][0]["device"], "NVIDIA H100");

    assert!(text(&cache, &["verify"]).contains("3 kernels and 1 tuning records are sound"));
    fs::write(kernel_of(1, 50_000, (13, 0)).folder(&cache).join("kernel.cubin"), "damaged").expect("written");
    let output = run(&cache, &["verify"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("kernel.cubin is not what meta.json says")
            && said.contains("1 are not; they are in quarantine")
    );
    let report = json(&cache, &["verify"]);
    assert_eq!((&report["kernels"], &report["left"], &report["unread"]), (&json!(2), &json!([]), &json!([])));

    assert_eq!(json(&cache, &["prune"])["removed"], 0);
    assert_eq!(json(&cache, &["prune", "--max", "60K"])["removed"], 1);
    assert_eq!(run(&cache, &["prune", "--max", "much"]).status.code(), Some(2));
    assert_eq!(json(&cache, &["clear"])["kernels"], 1);
    assert!(text(&cache, &["list"]).contains("0 kernels"));
}

#[test]
fn looking_makes_no_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("above/cache");
    let file = dir.path().join("bundle");
    for (arguments, status, says) in [
        (&["cache", "path"][..], 0, folder.to_str().expect("a plain path")),
        (&["cache", "list"], 0, "0 kernels"),
        (&["cache", "verify"], 0, "0 kernels and 0 tuning records are sound"),
        (&["cache", "prune"], 0, "removed 0 kernels"),
        (&["cache", "clear"], 0, "removed 0 kernels"),
        (&["doctor"], 0, "is not there yet"),
        (&["export", file.to_str().expect("a plain path")], 1, "holds nothing"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tilewright"));
        let output = command.args(arguments).env("TILEWRIGHT_CACHE", &folder).output().expect("it starts");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0, "{arguments:?} made something");
    }
}

#[test]
fn a_refused_folder_is_a_message() {
    let dir = tempfile::tempdir().expect("a folder");
    let mode: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(dir.path(), mode).expect("its mode is set");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilewright"));
    let output =
        command.args(["cache", "list"]).env("TILEWRIGHT_CACHE", dir.path()).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with("error: ") && said.contains("has mode 777"), "{said}");
}
