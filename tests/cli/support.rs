//! Running the command and making its files.
#![allow(dead_code, reason = "each test target uses its own part")]

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tilewright::toolchain::Toolchain;

/// The command; where there is no NVRTC it is told so, lest it fetch one.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tilewright"));
    if Toolchain::find().is_err() {
        command.env("TILEWRIGHT_NVRTC", nowhere());
    }
    command
}

/// A place that is not there and that nobody can make, root among them: it lies below a file.
pub fn nowhere() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml/nowhere")
}

/// A file of tensors that takes no time.
pub fn small_input(folder: &Path) -> String {
    let path = folder.join("in.safetensors");
    let shape: &[usize] = &[1, 2, 200, 64];
    write_tensors(&path, &["q", "k", "v"].map(|name| (name, Dtype::BF16, shape)));
    path.to_str().expect("a plain path").to_owned()
}

pub fn tilewright(arguments: &[&str]) -> Output {
    command().args(arguments).output().expect("the command starts")
}

/// Standard output as JSON, of a command that succeeds.
pub fn json(arguments: &[&str]) -> Value {
    let output = tilewright(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Checks that a command fails with code 1, says this, and neither panics nor prints a result.
pub fn fails(arguments: &[&str], says: &[&str]) {
    ends(1, arguments, says);
}

/// The same of arguments that make no sense, whose code is 2.
pub fn makes_no_sense(arguments: &[&str], says: &[&str]) {
    ends(2, arguments, says);
}

fn ends(status: i32, arguments: &[&str], says: &[&str]) {
    let output = tilewright(arguments);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
    assert!(said.starts_with("error: ") && !said.contains("panicked"), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", stdout(&output));
    for part in says {
        assert!(said.contains(part), "{arguments:?} should say {part:?}: {said}");
    }
}

/// Whether there is an NVRTC: what `what` says differs with it. Where `CI` is set it is installed before the tests.
pub fn has_nvrtc(what: &str) -> bool {
    let found = Toolchain::find();
    assert!(found.is_ok() || std::env::var_os("CI").is_none(), "{what} without NVRTC in CI: {found:?}");
    found.is_ok()
}

/// Commands that write what they are told to, with `OUT` in the place of the output; and how what they write begins.
#[cfg(unix)]
pub fn writers(input: &str) -> Vec<(Vec<String>, &'static [u8])> {
    let words = |line: &str| line.split(' ').map(|word| word.replace("INPUT", input)).collect::<Vec<_>>();
    let mut all = vec![(words("run --device cpu --input INPUT --output OUT"), &b""[..])];
    if has_nvrtc("the output of compile") {
        all.push((
            words("compile --offline --arch sm_80 --kernel transpose --bundle OUT"),
            &b"\x28\xb5\x2f\xfd"[..],
        ));
    }
    all
}

/// Arguments with the output in its place.
#[cfg(unix)]
pub fn with(arguments: &[String], output: &Path) -> Vec<String> {
    let output = output.to_str().unwrap();
    arguments.iter().map(|word| if word == "OUT" { output.to_owned() } else { word.clone() }).collect()
}

pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Writes a safetensors file of bf16 tensors with values that vary smoothly.
pub fn write_tensors(path: &Path, tensors: &[(&str, Dtype, &[usize])]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .enumerate()
        .map(|(seed, (_, dtype, shape))| {
            let value = |i: usize| ((i as f32) * 0.0137 * (seed as f32 + 1.0)).sin();
            let values = (0..shape.iter().product()).map(value);
            match dtype {
                Dtype::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
                Dtype::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
                _ => values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>(),
            }
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, dtype, shape), bytes)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), bytes).expect("sizes agree"))
    });
    std::fs::write(path, safetensors::serialize(views, None).expect("it serialises")).expect("it is written");
}
