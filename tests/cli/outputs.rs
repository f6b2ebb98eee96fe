//! Where results go: links, pipes, standard output; what an end in the middle leaves. Devices and other users' folders are
//! in tests/needs.
#![cfg(unix)]

use crate::files::names;
use crate::support::{command, fails, nowhere, small_input, stderr, stdout, tilewright, with, writers};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn every_command_writes_to_what_has_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let input = small_input(dir.path());
    mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    symlink("target", at("link")).unwrap();
    for (arguments, begins) in writers(&input) {
        let run = |name: &str| {
            let output = command().args(with(&arguments, &at(name))).output().unwrap();
            assert!(output.status.success(), "{arguments:?} to {name}: {}", stderr(&output));
        };
        fs::write(at("target"), "old").unwrap();
        run("link");
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink(), "{arguments:?}");
        let content = fs::read(at("target")).unwrap();
        assert!(content.starts_with(begins) && content.len() > 3, "{arguments:?}");
        let from = at("pipe");
        let reader = std::thread::spawn(move || fs::read(from).unwrap());
        run("pipe");
        assert!(reader.join().unwrap() == content, "{arguments:?}");
        assert!(fs::symlink_metadata(at("pipe")).unwrap().file_type().is_fifo(), "{arguments:?}");
        let output = command().args(with(&arguments, Path::new("-"))).output().unwrap();
        assert!(output.status.success() && output.stdout == content, "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "the report goes to standard error");
    }
    assert!(names(dir.path()).iter().all(|name| !name.contains("partial")), "{:?}", names(dir.path()));
}

#[test]
fn a_place_that_cannot_be_written_to_is_found_out_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_input(dir.path());
    let demo = ["demo", "--device", "cpu", "--png", "OUT"].map(str::to_owned).to_vec();
    for (arguments, _) in writers(&input).into_iter().chain([(demo, &b""[..])]) {
        let begun = Instant::now();
        let arguments = with(&arguments, &nowhere().join("out"));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        fails(&arguments, &["cannot write", "choose a place you may write to with `--"]);
        assert!(begun.elapsed() < Duration::from_secs(20), "{arguments:?}");
    }
}

#[test]
fn dashes_are_standard_input_and_output() {
    let dir = tempfile::tempdir().unwrap();
    let (input, to) = (small_input(dir.path()), dir.path().join("out.safetensors"));
    let file = ["run", "--device", "cpu", "--input", &input, "--output", to.to_str().unwrap()];
    assert!(tilewright(&file).status.success());
    for (json, output) in [(false, "-"), (true, "-"), (false, "/dev/stdout")] {
        let mut run = command();
        run.args(["run", "--device", "cpu", "--input", "-", "--output", output])
            .stdin(File::open(&input).unwrap());
        let done = run.args(json.then_some("--json")).output().unwrap();
        assert!(done.status.success(), "{}", stderr(&done));
        assert!(done.stdout == fs::read(&to).unwrap(), "the same as in a file, and nothing else");
        let said = stderr(&done);
        match json {
            true => {
                assert!(serde_json::from_str::<serde_json::Value>(&said).unwrap()["sparsity"].is_number())
            }
            false => assert!(said.contains("out, lse written"), "{said}"),
        }
    }
    assert!(!Path::new("-").exists());

    let mut run = command();
    run.args(["run", "--device", "cpu", "--input", &input, "--output", "-"]).stdout(Stdio::piped());
    let mut child = run.stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = child.wait_with_output().unwrap();
    let said = stderr(&done);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("error: cannot write -: Broken pipe") && !said.contains("panicked"), "{said}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_standard_output_that_is_closed_is_no_place_to_write_to() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_input(dir.path());
    for (output, redirection, ends) in
        [("-", ">&-", 1), ("/dev/stdout", ">&-", 1), ("-", "<>/dev/null >&0", 0)]
    {
        let line = format!("exec \"$@\" {redirection}");
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &line, "sh", env!("CARGO_BIN_EXE_tilewright"), "run", "--device", "cpu"]);
        let done = shell.args(["--input", &input, "--output", output]).output().unwrap();
        let said = stderr(&done);
        assert_eq!(done.status.code(), Some(ends), "{output} {redirection}: {said}");
        assert_eq!(said.contains("standard output is closed"), ends == 1, "{output} {redirection}: {said}");
        assert_eq!(said.contains("written"), ends == 0, "{output} {redirection}: {said}");
    }
}

/// A command in the middle of its work, on tensors that take one thread several seconds.
fn at_work(dir: &Path) -> std::process::Child {
    let (input, out) = (dir.join("long.safetensors"), dir.join("out"));
    let shape = vec![1, 8, 8000, 128];
    let zeros = vec![0; shape.iter().product::<usize>() * 2];
    let view = |name| (name, TensorView::new(Dtype::BF16, shape.clone(), &zeros).unwrap());
    fs::write(&input, safetensors::serialize(["q", "k", "v"].map(view), None).unwrap()).unwrap();
    fs::create_dir(&out).unwrap();
    let mut run = command();
    run.args(["run", "--device", "cpu", "--top-k", "1", "--input"]).arg(input).env("RAYON_NUM_THREADS", "1");
    let child = run.arg("--output").arg(out.join("file")).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    child
}

#[test]
fn an_interrupt_ends_a_long_call_at_once_and_leaves_nothing() {
    use rustix::process::{Pid, Signal, kill_process};
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = at_work(dir.path());
        assert!(child.try_wait().unwrap().is_none(), "it was to take longer");
        let begun = Instant::now();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(names(&dir.path().join("out")), [""; 0], "{signal:?}");
    }
}

#[test]
fn equal_inputs_give_equal_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let input = small_input(dir.path());
    let outputs: Vec<Vec<u8>> = (0..6)
        .map(|number| {
            let to = dir.path().join(format!("{number}"));
            let done = command()
                .args(["run", "--device", "cpu", "--mask", "--input", &input, "--output"])
                .arg(&to)
                .output()
                .unwrap();
            assert!(done.status.success(), "{}", stderr(&done));
            fs::read(to).unwrap()
        })
        .collect();
    assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
    let (_, read) = SafeTensors::read_metadata(&outputs[0]).unwrap();
    let metadata = read.metadata().clone().unwrap();
    let expected =
        [("made_by", "tilewright "), ("selection", "top-k 0.03"), ("block", "128x64"), ("scale", "0.125")];
    assert_eq!(metadata.len(), expected.len());
    for (name, begins) in expected {
        assert!(metadata[name].starts_with(begins), "{metadata:?}");
    }
}

#[test]
fn what_others_read_is_no_reason_to_panic() {
    // Standard error that nobody reads, and a result that fails.
    let mut child = command()
        .args(["run", "--input", "/dev/null", "--output", "/dev/null/x"])
        .env("TILEWRIGHT_LOG", "trace")
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(1), ""));
    // A device without an end is no file of tensors.
    let output = tilewright(&["run", "--input", "/dev/zero", "--output", "/dev/null/x"]);
    assert!(
        stderr(&output).contains("no safetensors file") && stdout(&output).is_empty(),
        "{}",
        stderr(&output)
    );
}
