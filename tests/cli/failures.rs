//! Failures, for people and for programs: numbers below 0, sizes beyond all bounds, names that no terminal should see.

use crate::support::{
    command, has_nvrtc, json, nowhere, small_input, stderr, stdout, tilewright, write_tensors,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn numbers_below_zero_are_values() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_input(dir.path());
    let to = dir.path().join("out");
    let run = |option: &str, value: &str| {
        let arguments =
            ["run", "--device", "cpu", "--input", &input, "--output", to.to_str().unwrap(), option, value];
        tilewright(&arguments)
    };
    for (value, scale) in [("-1", "-1"), ("-0.25", "-0.25"), ("-1e-3", "-0.001"), ("2", "2")] {
        let output = run("--scale", value);
        assert!(output.status.success(), "{value}: {}", stderr(&output));
        let bytes = std::fs::read(&to).unwrap();
        let (_, read) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(read.metadata().as_ref().unwrap()["scale"], scale);
    }
    // Other numbers cannot be below 0: it is the number that is refused, not an option `-1`.
    let tune = |option| tilewright(&["tune", "--device", "cpu", option, "-1"]);
    let shapes = tilewright(&["tune", "--device", "cpu", "--shapes", "-1x2x3"]);
    let inspect = tilewright(&["inspect", "pool", "--candidate", "-1"]);
    let prune = tilewright(&["cache", "prune", "--max", "-1"]);
    for (what, output, says) in [
        ("top-k", run("--top-k", "-1"), "top-k is -1"),
        ("top-p", run("--top-p", "-0.5"), "top-p is -0.5"),
        ("density", tune("--density"), "needed above 0"),
        ("spread", tune("--spread"), "needed 0 or more"),
        ("candidate", inspect, "invalid value '-1'"),
        ("max", prune, "write a number of bytes"),
        ("scale", run("--scale", "NaN"), "needed a finite number"),
        ("scale", run("--scale", "-inf"), "needed a finite number"),
        ("top-k", run("--top-k", "-inf"), "top-k is -inf"),
        ("scale", run("--scale", "--mask"), "needed a finite number"),
        ("block", run("--block", "-1x-2"), "'--block <QxKV>': "),
        ("device", tilewright(&["demo", "--device", "-1"]), "'--device <DEVICE>': use cpu"),
        ("shapes", shapes, "'--shapes <SHAPES>': "),
        ("arch", tilewright(&["compile", "--arch", "-80"]), "'--arch <ARCH>': "),
        ("spec", tilewright(&["inspect", "pool", "--spec", "-D=1"]), "`-D` is no parameter"),
    ] {
        let said = stderr(&output);
        assert!(!output.status.success() && said.contains(says), "{what}: {said}");
        assert!(!said.contains("unexpected argument"), "{what}: {said}");
    }
}

/// The failure of a command that is asked for JSON.
fn failure(arguments: &[&str]) -> (i32, Value) {
    let output = tilewright(&[arguments, &["--json"]].concat());
    let said = format!("{arguments:?}: {} {}", stdout(&output), stderr(&output));
    let failure: Value = serde_json::from_slice(&output.stdout).expect(&said);
    assert!(output.stderr.is_empty(), "{said}");
    let status = output.status.code().expect(&said);
    assert_eq!(failure["error"]["status"], status, "{said}");
    assert_eq!(failure.as_object().unwrap().len(), 1, "{said}");
    (status, failure["error"].clone())
}

#[test]
fn failures_are_json_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (input, nowhere) = (small_input(dir.path()), nowhere().display().to_string());
    let below = format!("{nowhere}/out");
    let flat = dir.path().join("flat");
    write_tensors(&flat, &["q", "k", "v"].map(|name| (name, Dtype::BF16, &[4, 64][..])));
    let flat = flat.to_str().unwrap().to_owned();
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/custom-kernel/kernels");
    for (arguments, status, kind, says) in [
        (&["run", "--input", &nowhere, "--output", "x"][..], 1, "input", "check the path"),
        (&["run", "--input", &input, "--output", &below], 1, "output", "cannot write"),
        (&["run", "--input", &input, "--output", "x", "--top-k", "7"], 2, "usage", "top-k is 7"),
        (&["run", "--input", &flat, "--output", "x"], 1, "library", "needed 4"),
        (&["run", "--input", &input, "--output", "x", "--device", "cuda:99"], 1, "", ""),
        (&["emit", "--templates", empty], 1, "codegen", "holds no kernel"),
        (&["inspect", "nothing"], 1, "arguments", "no kernel `nothing`"),
        (&["import", &nowhere], 1, "bundle", "could not open"),
        (&["toolchain", "install", "--offline"], 1, "arguments", "--offline"),
        (&["tune", "--device", "cpu"], 1, "arguments", "nothing to tune"),
        (&["tune", "--plot", "x", "--export", "x"], 1, "arguments", "two outputs would go to x"),
        (&["inspect", "--templates", &nowhere], 1, "input", "cannot read the kernels of"),
        (&["compile", "--templates", empty], 1, "codegen", "holds no kernel"),
        (&["tune", "--templates", own, "--kernel", "rms_norm"], 1, "arguments", "its scalars: epsilon"),
        (&["tune", "--templates", own], 2, "usage", "--kernel <NAME>"),
        (&["inspect", "--candidate", "0"], 2, "usage", "<KERNEL>"),
        (&["inspect", "--source"], 2, "usage", "<KERNEL>"),
        (&["inspect", "--spec", "D=64"], 2, "usage", "<KERNEL>"),
        (&["inspect", "--arch", "sm_80"], 2, "usage", "<KERNEL>"),
        (&["run"], 2, "usage", "--input <FILE>"),
        (&["run", "--block", "1x1"], 2, "usage", "1x1"),
        (&["no-such-command"], 2, "usage", "no-such-command"),
        (&["tune", "--shapes", "1x9223372036854775807x128"], 2, "usage", "too large"),
        (&[], 2, "usage", "Usage"),
    ] {
        let (found, error) = failure(arguments);
        assert_eq!(found, status, "{arguments:?}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says) && !message.starts_with("error"), "{arguments:?}: {error}");
        assert!(kind.is_empty() || error["kind"] == kind, "{arguments:?}: {error}");
    }
    assert_eq!(json(&["--version"]), serde_json::json!({ "version": env!("CARGO_PKG_VERSION") }));
    // Help is help, and what follows `--` is no option.
    let help = tilewright(&["--json", "--help"]);
    assert!(help.status.success() && stdout(&help).contains("Usage"));
    let output = tilewright(&["inspect", "--no-such-option", "--", "--json"]);
    assert!(output.stdout.is_empty() && output.status.code() == Some(2), "{}", stdout(&output));
    // Standard output is for what the command makes, and for one thing.
    for (arguments, kind, says) in [
        (&["run", "--input", &nowhere, "--output", "-"][..], "input", "check the path"),
        (&["tune", "--plot", "-", "--export", "/dev/stdout"], "arguments", "two outputs"),
    ] {
        let output = tilewright(&[arguments, &["--json"]].concat());
        let said = stderr(&output);
        let failure: Value = serde_json::from_str(&said).expect(&said);
        assert!(output.stdout.is_empty() && failure["error"]["kind"] == kind, "{failure}");
        assert!(failure["error"]["message"].as_str().unwrap().contains(says), "{failure}");
    }
    // A report that is bad news is a report.
    let emit = ["emit", "--check", "--out", empty, "--json"];
    let output = command().args(emit).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["up_to_date"]), (Some(1), &false.into()));
}

/// A file whose header claims these shapes of q, k and v, and that no tensor has data.
fn claims(path: &Path, shapes: [&[u64]; 3]) {
    let tensor =
        |shape: &[u64]| serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [0, 0] });
    let [q, k, v] = shapes.map(tensor);
    let header = serde_json::json!({ "q": q, "k": k, "v": v }).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn shapes_without_elements_have_results_without_elements() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("in"), dir.path().join("out"));
    let (big, huge) = (1_u64 << 40, 1_u64 << 62);
    let same = |shape: [u64; 4]| [shape, shape, shape];
    // None: the product of a result's dimensions fits no address space, which is an error.
    for (layout, shapes, lse) in [
        ("bhsd", same([0, big, big, 64]), Some([0, big, big])),
        ("bhsd", same([0, huge, 8, 64]), Some([0, huge, 8])),
        ("bhsd", same([0, 1, huge, 64]), Some([0, 1, huge])),
        ("bhsd", same([1 << 22, 1, 0, 64]), Some([1 << 22, 1, 0])),
        ("bhsd", same([big, 1, 0, 64]), Some([big, 1, 0])),
        ("bhsd", same([1, big, 0, 64]), Some([1, big, 0])),
        ("bhsd", [[1, big, 0, 64], [1, 1, 0, 64], [1, 1, 0, 64]], Some([1, big, 0])),
        ("bhsd", [[1, 0, 8, 64], [1, 0, huge, 64], [1, 0, huge, 64]], Some([1, 0, 8])),
        ("bshd", same([1, 0, huge, 64]), Some([1, huge, 0])),
        ("bshd", same([big, 0, 1, 64]), Some([big, 1, 0])),
        ("bshd", same([big, 0, big, 64]), None),
    ] {
        claims(&from, [&shapes[0], &shapes[1], &shapes[2]]);
        let begun = Instant::now();
        let mut run = command();
        run.args(["run", "--device", "cpu", "--mask", "--layout", layout, "--input"]).arg(&from);
        let output = run.arg("--output").arg(&to).output().unwrap();
        let said = format!("{layout} {shapes:?}: {}", stderr(&output));
        assert!(begun.elapsed() < Duration::from_secs(10), "{said}");
        let Some(lse) = lse else {
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(
                said.contains("does not fit into memory: use a smaller shape") && !said.contains("panicked"),
                "{said}"
            );
            continue;
        };
        assert!(output.status.success(), "{said}");
        let bytes = std::fs::read(&to).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let shape =
            |name| -> Vec<u64> { file.tensor(name).unwrap().shape().iter().map(|&dim| dim as u64).collect() };
        assert_eq!((shape("lse"), shape("out")), (lse.to_vec(), shapes[0].to_vec()), "{said}");
        assert!(file.tensors().iter().all(|(_, tensor)| tensor.data().is_empty()), "{said}");
        // The demo has nothing to measure there.
        let own = from.to_str().unwrap();
        let output = tilewright(&["demo", "--device", "cpu", "--offline", "--tensors", own]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    }
}

#[test]
fn what_is_not_finite_is_said_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("in"), dir.path().join("out"));
    let shape: &[usize] = &[1, 1, 16, 64];
    write_tensors(&from, &["q", "k", "v"].map(|name| (name, Dtype::BF16, shape)));
    let mut bytes = std::fs::read(&from).unwrap();
    let end = bytes.len();
    // The last tensor of the file is v: a NaN and two infinities.
    for (at, bits) in [(2, 0x7fc0_u16), (40, 0x7f80), (42, 0xff80)] {
        bytes[end - at..end - at + 2].copy_from_slice(&bits.to_le_bytes());
    }
    std::fs::write(&from, bytes).unwrap();
    let paths = [from.to_str().unwrap(), to.to_str().unwrap()];
    let arguments = ["run", "--device", "cpu", "--input", paths[0], "--output", paths[1]];
    let output = tilewright(&arguments);
    assert!(output.status.success());
    let said = stderr(&output);
    assert!(said.contains("warning: v has 1 NaN and 2 infinite elements"), "{said}");
    assert!(!said.contains("q has") && !said.contains("k has"), "{said}");
    let report = json(&arguments);
    assert_eq!(report["non_finite"]["v"], serde_json::json!({ "nan": 1, "infinite": 2 }));
    assert_eq!(report["non_finite"]["q"], serde_json::json!({ "nan": 0, "infinite": 0 }));
}

#[test]
fn names_from_files_reach_no_terminal_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let evil = "\x1b]0;owned\x07\u{9b}2J\u{202e}\nerror: all is well";
    let (odd, tensors) = (dir.path().join(evil), dir.path().join("in"));
    write_tensors(&tensors, &[(evil, Dtype::BF16, &[1, 1, 1, 8])]);
    let (odd, tensors) = (odd.to_str().unwrap(), tensors.to_str().unwrap());
    let good = small_input(dir.path());
    for arguments in [
        &["run", "--input", odd, "--output", "x"][..],
        &["run", "--input", tensors, "--output", "x"],
        &["run", "--input", &good, "--output", &format!("{odd}/x")],
        &["run", "--device", "cpu", "--input", &good, "--output", odd],
        &["import", odd],
        &["emit", "--templates", odd],
        &["demo", "--tensors", odd],
        &["cache", "path"],
        &["cache", "list"],
        &["doctor"],
    ] {
        for (json, shown) in [(None, "\\u{1b}]0;owned"), (Some("--json"), "]0;owned")] {
            let mut run = command();
            let output = run.args(arguments).args(json).env("TILEWRIGHT_CACHE", odd).output().unwrap();
            let said = stdout(&output) + &stderr(&output);
            let raw = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
            assert!(!said.contains(raw), "{arguments:?}: {said:?}");
            assert!(said.contains(shown), "{arguments:?}: {said:?}");
        }
    }
    // clap shows an argument as it is, and a terminal obeys it.
    let said = stderr(&tilewright(&["demo", odd]));
    assert!(said.contains("unexpected argument") && said.contains("\\u{9b}2J\\u{202e}"), "{said:?}");
    // What the library warns of is a line each.
    let cache = dir.path().join("cache");
    std::fs::create_dir_all(cache.join("v1/sm_80/pool\nerror: \x1b[2J-0")).unwrap();
    let verified = command().args(["cache", "verify"]).env("TILEWRIGHT_CACHE", &cache).output().unwrap();
    let said = stderr(&verified);
    assert!(said.contains("pool\\nerror: \\u{1b}[2J-0") && said.lines().count() == 1, "{said:?}");
    let forged = tilewright(&["run", "--input", odd, "--output", "x"]);
    assert_eq!(stderr(&forged).lines().count(), 1, "{}", stderr(&forged));
}

/// JSON has no place for bytes that are no text.
#[test]
#[cfg(target_os = "linux")]
fn names_that_are_no_text_are_reported_all_the_same() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"odd\xff"));
    let input = small_input(dir.path());
    std::fs::copy(&input, &odd).unwrap();
    let (odd, out) = (odd.as_os_str(), dir.path().join("out"));
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates");
    let (to, from) = (out.to_str().unwrap(), templates.to_str().unwrap());
    let mut all = vec![
        (vec!["run", "--device", "cpu", "--output", to, "--input"], 0),
        (vec!["run", "--device", "cpu", "--input", &input, "--output"], 0),
        (vec!["emit", "--check", "--templates", from, "--out"], 1),
        (vec!["import"], 1),
        (vec!["demo", "--tensors"], 1),
        (vec!["cache", "path"], 0),
        (vec!["cache", "list"], 1),
        (vec!["doctor"], 0),
    ];
    if has_nvrtc("names that are no text") {
        all.push((vec!["compile", "--offline", "--arch", "sm_80", "--kernel", "transpose", "--bundle"], 0));
        all.push((vec!["toolchain", "find"], 0));
    }
    for (arguments, status) in all {
        let takes_name = arguments.iter().any(|word| word.starts_with("--")) || arguments == ["import"];
        for json in [None, Some("--json")] {
            let mut run = command();
            run.args(json).args(&arguments).args(takes_name.then_some(odd));
            // A place that is looked at, and one that is used.
            let output = run.env("CUDA_HOME", odd).env("TILEWRIGHT_CACHE", odd).output().unwrap();
            let said = stdout(&output) + &stderr(&output);
            assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
            let document = serde_json::from_slice::<Value>(&output.stdout);
            let has_name = || document.is_ok_and(|json| json.to_string().contains("odd\u{fffd}"));
            assert!(json.is_none() || has_name(), "{arguments:?}: {said}");
        }
    }
}
