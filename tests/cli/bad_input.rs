//! Files that `run` cannot use: each has its message, and nothing half-written is left.

use crate::support::{data, fails, makes_no_sense, nowhere, write_tensors};
use safetensors::Dtype::{self, BF16, F16, F32};
use std::path::Path;

/// Runs on `input` and checks what is said; the output's folder stays empty.
fn refuses(input: &Path, says: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let (from, to) = (input.to_str().unwrap(), output.to_str().unwrap());
    fails(&["run", "--device", "cpu", "--input", from, "--output", to], says);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was left behind");
}

fn refuses_bytes(bytes: &[u8], says: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.safetensors");
    std::fs::write(&input, bytes).unwrap();
    refuses(&input, says);
}

fn refuses_tensors(tensors: &[(&str, Dtype, &[usize])], says: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.safetensors");
    write_tensors(&input, tensors);
    refuses(&input, says);
}

#[test]
fn files_that_are_not_there_or_not_whole() {
    refuses(&nowhere(), &["cannot read ", "Cargo.toml/nowhere", "check the path"]);
    refuses(Path::new("/tmp"), &["cannot read /tmp"]);
    let whole = std::fs::read(data("layer6-head1.safetensors")).unwrap();
    let needed = format!("of {}", whole.len());
    refuses_bytes(&whole[..whole.len() - 1], &["cut short", &needed]);
    refuses_bytes(&whole[..100_000], &["cut short", "100000 bytes", &needed]);
    refuses_bytes(&whole[..300], &["cut short"]);
    refuses_bytes(&whole[..8], &["cut short"]);
    refuses_bytes(&whole[..5], &["no safetensors file", "5 bytes"]);
    refuses_bytes(b"", &["no safetensors file", "0 bytes"]);
    refuses_bytes(
        b"PK\x03\x04 this is a zip file, or says so",
        &["no safetensors file", "length of a header"],
    );
    refuses_bytes(&[whole.as_slice(), b"more"].concat(), &["no safetensors file", "cover the file"]);
    let mut garbled = whole.clone();
    garbled[8] = b'?';
    refuses_bytes(&garbled, &["no safetensors file", "JSON"]);
}

#[test]
fn tensors_that_do_not_fit() {
    let good: &[usize] = &[1, 2, 130, 64];
    let three = |q: (Dtype, &[usize]), k: (Dtype, &[usize]), v: (Dtype, &[usize]), says: &[&str]| {
        refuses_tensors(&[("q", q.0, q.1), ("k", k.0, k.1), ("v", v.0, v.1)], says);
    };
    let fine = (BF16, good);
    refuses_tensors(&[("q", BF16, good), ("key", BF16, good)], &["no tensor `k`", "`key`, `q`"]);
    three((F32, good), fine, fine, &["`q`", "f32", "f16 or bf16"]);
    three(fine, (F16, good), fine, &["k has dtype f16", "bf16 as q has"]);
    three((BF16, &[2, 130, 64]), fine, fine, &["q has 3 dimensions", "needed 4"]);
    three(fine, (BF16, &[1, 2, 130, 128]), fine, &["d is (64, 128) in q and k"]);
    three(fine, fine, (BF16, &[1, 2, 131, 64]), &["seq_kv is (130, 131) in k and v"]);
    three((BF16, &[1, 3, 130, 64]), fine, fine, &["q has 3 heads and k has 2"]);
    three(
        (BF16, &[1, 3, 130, 64]),
        (BF16, &[1, 0, 130, 64]),
        (BF16, &[1, 0, 130, 64]),
        &["k has none", "divides 3"],
    );
    three((BF16, &[2, 2, 130, 64]), fine, fine, &["batch is (2, 1) in q and k"]);
    let wide: &[usize] = &[1, 1, 16, 320];
    three((BF16, wide), (BF16, wide), (BF16, wide), &["head dimension 320", "8 to 256"]);
}

#[test]
fn places_that_cannot_be_written_to() {
    let input = data("layer2-head5.safetensors");
    let folder = tempfile::tempdir().unwrap();
    let from = input.to_str().unwrap();
    let run = |to: &str, says: &[&str]| {
        fails(&["run", "--device", "cpu", "--input", from, "--output", to], says);
    };
    let absent = folder.path().join("absent/out.safetensors");
    run(absent.to_str().unwrap(), &["cannot write ", "absent/out.safetensors", "--output"]);
    run(nowhere().to_str().unwrap(), &["cannot write ", "Cargo.toml/nowhere", "--output"]);
    run(folder.path().to_str().unwrap(), &["cannot write", "it is a folder"]);
    run("/dev/null/out.safetensors", &["cannot write"]);
    run("", &["cannot write '': the name is empty"]);
}

#[test]
fn rules_out_of_range() {
    let input = data("layer2-head5.safetensors");
    let from = input.to_str().unwrap();
    let run = |option: &str, value: &str, says: &[&str]| {
        let to = nowhere();
        let to = to.to_str().unwrap();
        makes_no_sense(&["run", "--device", "cpu", "--input", from, "--output", to, option, value], says);
    };
    run("--top-k", "0", &["top-k is 0"]);
    run("--top-p", "1.5", &["top-p is 1.5"]);
    run("--top-p", "NaN", &["top-p is NaN"]);
    run("--top-k", "1e300", &["top-k is 1e300, needed"]);
    run("--top-p", "-1e-300", &["top-p is -1e-300, needed"]);
    run("--top-k", "much", &["'--top-k <SHARE>': "]);
}
