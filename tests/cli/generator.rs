//! `emit`, `compile`, `inspect` and `toolchain`.

use crate::support::{command, fails, has_nvrtc, json, stderr, stdout, tilewright};
use std::path::Path;

#[test]
fn emit_writes_checks_and_finds_differences() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (templates, folder) = (root.join("templates"), tempfile::tempdir().unwrap());
    let (from, to) = (templates.to_str().unwrap(), folder.path().to_str().unwrap());
    let emit = ["emit", "--templates", from, "--out", to];
    let written = json(&emit);
    assert!(written["stale"].as_array().unwrap().iter().any(|name| name == "forward.rs"));
    let check = [&emit[..], &["--check"]].concat();
    assert_eq!(json(&check)["up_to_date"], true);

    std::fs::write(folder.path().join("forward.rs"), "other").unwrap();
    std::fs::write(folder.path().join("stranger.rs"), "").unwrap();
    let output = tilewright(&check);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.contains("out of date: ") && text.contains("forward.rs"), "{text}");
    assert!(text.contains("not generated: ") && text.contains("stranger.rs"), "{text}");

    fails(&["emit", "--templates", "/nonexistent", "--out", to], &["/nonexistent"]);
    let empty = tempfile::tempdir().unwrap();
    fails(&["emit", "--templates", empty.path().to_str().unwrap(), "--out", to], &["holds no kernel"]);
}

#[test]
fn compile_reports_every_architecture() {
    fails(&["compile", "--kernel", "backwards"], &["no kernel `backwards`", "forward"]);
    let output = tilewright(&["compile", "--arch", "sm_52"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("sm_80"), "{}", stderr(&output));
    if !has_nvrtc("compile") {
        fails(&["compile"], &["TILEWRIGHT_NVRTC", "does not exist"]);
        return;
    }
    let report = json(&["compile", "--kernel", "pool", "--arch", "sm_80,sm_90a"]);
    assert_eq!((report["failed"].as_u64(), report["spilled"].as_u64()), (Some(0), Some(0)));
    let variants = report["variants"].as_array().unwrap();
    assert_eq!(report["compilations"].as_u64(), Some(2 * variants.len() as u64));
    for variant in variants {
        let archs: Vec<&str> =
            variant["compiled"].as_array().unwrap().iter().map(|one| one["arch"].as_str().unwrap()).collect();
        assert_eq!(archs, ["sm_80", "sm_90a"]);
    }
    let text = stdout(&tilewright(&["compile", "--kernel", "pool", "--arch", "sm_90a"]));
    assert!(text.contains("registers") && text.contains("0 failed, 0 with spills"), "{text}");
}

#[test]
fn inspect_shows_kernels_candidates_and_sources() {
    let all = json(&["inspect"]);
    let kernels = all["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|kernel| kernel["kernel"] == "forward"));

    let one = json(&["inspect", "forward", "--spec", "D=256,T=f16", "--arch", "sm_86"]);
    assert_eq!(one["variant"]["spec"]["D"], 256);
    assert!(!one["accepted"].as_array().unwrap().is_empty());
    let rejected = one["rejected"].to_string();
    assert!(rejected.contains("shared_memory"), "a head dimension of 256 strains sm_86: {rejected}");
    if has_nvrtc("inspect's ptxas report") {
        assert!(one["compiled"]["ptxas"]["registers"].as_u64() > Some(0));
    } else {
        assert!(one["compiled"].is_null());
    }
    let text = stdout(&tilewright(&["inspect", "forward", "--arch", "sm_86"]));
    assert!(text.contains("candidate 0: forward_sm80_"), "{text}");

    let source = stdout(&tilewright(&["inspect", "pool", "--source"]));
    assert!(source.contains("TILEWRIGHT_KERNEL") && source.contains("__global__"), "{source}");

    fails(&["inspect", "nothing"], &["no kernel `nothing`"]);
    fails(&["inspect", "forward", "--spec", "D=100"], &["D = 100 is not supported", "128"]);
    fails(&["inspect", "forward", "--spec", "X=1"], &["`X` is no parameter"]);
    fails(&["inspect", "pool", "--candidate", "99"], &["no candidate 99"]);
    assert_eq!(tilewright(&["inspect", "forward", "--spec", "D"]).status.code(), Some(2));
}

#[test]
fn toolchain_find_says_where_or_why_not() {
    let output =
        command().args(["toolchain", "find"]).env("TILEWRIGHT_NVRTC", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("error: TILEWRIGHT_NVRTC is set to /nonexistent"),
        "{}",
        stderr(&output)
    );
    if has_nvrtc("toolchain find") {
        let found = json(&["toolchain", "find"]);
        assert!(Path::new(found["library"].as_str().unwrap()).is_file());
    }
}

#[test]
fn no_arguments_is_a_question_for_help() {
    let output = tilewright(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage"));
    assert!(tilewright(&["--version"]).status.success());
}
