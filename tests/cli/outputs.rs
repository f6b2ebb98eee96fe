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
    // Before NVRTC is looked for, too, which may be a download.
    let to = nowhere().join("out");
    let mut compile = command();
    compile.args(["compile", "--bundle"]).arg(&to).env("TILEWRIGHT_NVRTC", nowhere());
    let said = stderr(&compile.output().unwrap());
    assert!(said.starts_with("error: cannot write "), "{said}");
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

#[test]
#[cfg(target_os = "linux")]
fn a_report_does_not_lie_over_what_was_written_to_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    let (input, file) = (small_input(dir.path()), dir.path().join("file"));
    let (link, onto) = (dir.path().join("link"), dir.path().join("onto"));
    symlink("/dev/stdout", &link).and_then(|()| symlink("link", &onto)).unwrap();
    let run = |output: &str| {
        let mut run = command();
        run.args(["run", "--device", "cpu", "--input", &input, "--output", output]);
        let done = run.stdout(File::create(&file).unwrap()).output().unwrap();
        assert!(done.status.success(), "{output}: {}", stderr(&done));
        assert!(stderr(&done).contains("out, lse written"), "{output}: {}", stderr(&done));
        fs::read(&file).unwrap()
    };
    let expected = run("-");
    SafeTensors::deserialize(&expected).unwrap();
    let (link, onto) = (link.to_str().unwrap(), onto.to_str().unwrap());
    for output in ["/dev/stdout", "/dev/./fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1", link, onto] {
        assert!(run(output) == expected, "{output}");
    }
}

/// A report that is lost is a failure, and a failure is said where it can be.
#[test]
#[cfg(target_os = "linux")]
fn what_standard_output_does_not_take_is_said_on_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    let (input, to) = (small_input(dir.path()), dir.path().join("out").display().to_string());
    let (nowhere, closed) = (nowhere().display().to_string(), "cannot write to standard output");
    let run = ["run", "--device", "cpu", "--output", &to, "--input"];
    for (arguments, status, says) in [
        ([&run[..], &[&input]].concat(), 1, closed),
        (vec!["inspect"], 1, closed),
        (vec!["cache", "path"], 1, closed),
        (vec!["--version"], 1, closed),
        ([&run[..], &[&nowhere]].concat(), 1, "check the path"),
        (vec!["no-such-command"], 2, "no-such-command"),
    ] {
        // Closed, and a pipe that nobody reads: only a failure is of interest there.
        for redirection in [">&-", "| :"] {
            let line = format!("{{ sleep 0.2; exec \"$@\"; }} {redirection}");
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", &line, "sh", env!("CARGO_BIN_EXE_tilewright"), "--json"]);
            let done = shell.args(&arguments).output().unwrap();
            let said = stderr(&done);
            if redirection == "| :" && says == closed {
                assert_eq!(said, "", "{arguments:?}");
                continue;
            }
            let failure: serde_json::Value = serde_json::from_str(&said).expect(&said);
            assert_eq!(failure["error"]["status"], status, "{arguments:?} {redirection}: {said}");
            assert!(said.contains(says), "{arguments:?} {redirection}: {said}");
            assert!(redirection == "| :" || done.status.code() == Some(status), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn the_name_of_a_pipe_that_is_waited_for_reaches_no_terminal_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (input, pipe) = (small_input(dir.path()), dir.path().join("\x1b]0;owned\x07\nerror: b"));
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let mut run = command();
    run.args(["run", "--device", "cpu", "--input", &input, "--output"]).arg(&pipe);
    let child = run.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    SafeTensors::deserialize(&fs::read(&pipe).unwrap()).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = stderr(&done);
    assert!(done.status.success() && said.contains("\\u{1b}]0;owned\\u{7}\\nerror: b"), "{said:?}");
    assert!(!said.contains('\x1b') && said.lines().count() == 1, "{said:?}");
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
    // Standard error that nobody reads, and a result that fails; `][` is no filter.
    for log in ["trace", "]["] {
        let mut child = command()
            .args(["run", "--input", "/dev/null", "--output", "/dev/null/x"])
            .env("TILEWRIGHT_LOG", log)
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stderr.take());
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(1), ""), "{log}");
    }
    // A device without an end is no file of tensors.
    let output = tilewright(&["run", "--input", "/dev/zero", "--output", "/dev/null/x"]);
    assert!(
        stderr(&output).contains("no safetensors file") && stdout(&output).is_empty(),
        "{}",
        stderr(&output)
    );
}
