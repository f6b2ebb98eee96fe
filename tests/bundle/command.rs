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

/// Everything below a folder.
fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        found.push(entry.path());
        found.extend(files_below(&entry.path()));
    }
    found
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
fn bundles_go_through_pipes() {
    use std::os::unix::fs::symlink;
    let (dir, cache) = cache();
    kernel(0).put(&cache);
    kernel_of("pool", "sm_80", 400).put(&cache);
    let (file, link) = (dir.path().join("bundle"), dir.path().join("link"));
    symlink("bundle", &link).unwrap();
    assert!(run(cache.root(), &["export", link.to_str().unwrap()]).status.success());
    assert!(link.is_symlink());
    let bundle = std::fs::read(&file).unwrap();
    let output = run(cache.root(), &["export", "-"]);
    assert!(output.status.success() && output.stdout == bundle);
    assert!(String::from_utf8_lossy(&output.stderr).contains("-: 2 kernels"));

    for name in ["-", "/dev/stdin"] {
        let target = dir.path().join(format!("target{}", name.len()));
        let mut import = Command::new(env!("CARGO_BIN_EXE_tilewright"));
        import.args(["import", name, "--json"]).env("TILEWRIGHT_CACHE", &target);
        // A pipe, whose length nobody knows.
        let (reader, mut writer) = std::io::pipe().unwrap();
        let bytes = bundle.clone();
        let writing = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes));
        let output = import.stdin(reader).output().unwrap();
        writing.join().unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(length(&report["added"]), 2);
        assert!(kernel(0).is_in(&KernelCache::at(&target).unwrap()));
    }
}

/// Whatever the mask of the process, nobody else can change what is unpacked before it is published. What a killed import has
/// unpacked is gone with the next one; what one that still runs unpacks is not.
#[test]
fn what_is_unpacked_is_private_and_goes_with_the_next_import() {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::process::Stdio;
    let (dir, cache) = cache();
    for name in ["a", "b", "c"] {
        kernel_of(name, "sm_80", 400_000).put(&cache);
    }
    let (file, target) = (dir.path().join("bundle"), dir.path().join("target"));
    assert!(run(cache.root(), &["export", file.to_str().unwrap()]).status.success());
    let bundle = std::fs::read(&file).unwrap();
    let begin = || {
        let mut import = Command::new("/bin/sh");
        let mask = "umask 0; exec \"$0\" import -";
        import.args(["-c", mask, env!("CARGO_BIN_EXE_tilewright")]).env("TILEWRIGHT_CACHE", &target);
        let mut child = import.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&bundle[..bundle.len() * 3 / 4]).unwrap();
        (child, stdin)
    };
    let v1 = target.join("v1");
    let unpacked = || {
        let entries = std::fs::read_dir(&v1).into_iter().flatten().flatten().map(|entry| entry.path());
        let of_import = |path: &std::path::PathBuf| path.to_string_lossy().contains("/.tmp-");
        let mut folders: Vec<_> = entries.filter(of_import).collect();
        folders.sort();
        folders
    };
    let wait_for = |what: &str, condition: &dyn Fn() -> bool| {
        let start = std::time::Instant::now();
        while !condition() {
            assert!(start.elapsed().as_secs() < 60, "waited in vain for {what}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let cubins =
        |folder: &Path| files_below(folder).iter().filter(|path| path.ends_with("kernel.cubin")).count();
    let is_half_done = || unpacked().iter().any(|folder| cubins(folder) > 0);
    let (mut killed, _stdin) = begin();
    wait_for("a kernel", &is_half_done);
    let left = unpacked().remove(0);
    for path in files_below(&left).into_iter().chain([left.clone()]) {
        let mode = std::fs::symlink_metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o022, 0, "{mode:o} {}", path.display());
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(unpacked(), std::slice::from_ref(&left));

    let (mut running, mut stdin) = begin();
    wait_for("the next import", &|| !left.exists() && is_half_done());
    assert!(run(&target, &["import", file.to_str().unwrap()]).status.success());
    assert_eq!(unpacked().len(), 1, "the one that runs keeps its own");
    stdin.write_all(&bundle[bundle.len() * 3 / 4..]).unwrap();
    drop(stdin);
    assert!(running.wait().unwrap().success());
    assert_eq!(unpacked(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_limit_below_a_bundle_is_said() {
    let (dir, cache) = cache();
    let file = dir.path().join("bundle");
    let (path, target) = (file.to_str().unwrap(), dir.path().join("target"));
    kernel(0).put(&cache);
    kernel(1).put(&cache);
    assert!(run(cache.root(), &["export", path]).status.success());
    let import = |limit: &str, into: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tilewright"));
        let command = command.args(["import", path]).env("TILEWRIGHT_CACHE", into);
        command.env("TILEWRIGHT_CACHE_LIMIT", limit).output().unwrap()
    };
    let refused = import("4K", &target);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("4096") && said.contains("TILEWRIGHT_CACHE_LIMIT"), "{said}");
    kernel(7).put(&KernelCache::at(&target).unwrap());
    let taken = import("9K", &target);
    let said = String::from_utf8_lossy(&taken.stdout).into_owned();
    assert!(taken.status.success() && said.contains("1 other kernels") && said.contains("9.0 KiB"), "{said}");
    let target = KernelCache::at(&target).unwrap();
    assert!(kernel(0).is_in(&target) && kernel(1).is_in(&target) && !kernel(7).is_in(&target));
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
