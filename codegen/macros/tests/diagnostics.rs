//! What rustc says of a function that is passed without its braces, or where the other kind is needed.

use std::path::Path;
use std::process::Command;

/// What `src/function.rs` has from elsewhere.
const CODEGEN: &str = "pub mod lower { #[derive(Clone, Debug)] pub enum CaptureValue { F32(f32) } }";

/// Two device functions as the attributes make them, and what takes them.
const USER: &str = r#"
#![allow(non_camel_case_types, dead_code)]
#[path = "FUNCTION"]
mod function;
use function::{CaptureValue, DeviceFn, MaskMod, ScoreMod};

fn double(score: f32, _b: i32, _h: i32, _q: i32, _kv: i32) -> f32 { 2.0 * score }
struct double {}
impl DeviceFn for double {
    fn name(&self) -> &str { "double" }
    fn source(&self) -> &str { "" }
    fn captures(&self) -> Vec<CaptureValue> { Vec::new() }
}
impl ScoreMod for double {
    fn score(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 { double(score, b, h, q, kv) }
    fn gradient(&self, _: f32, _: i32, _: i32, _: i32, _: i32) -> f32 { 2.0 }
}

fn causal(_b: i32, _h: i32, q: i32, kv: i32) -> bool { q >= kv }
struct causal {}
impl DeviceFn for causal {
    fn name(&self) -> &str { "causal" }
    fn source(&self) -> &str { "" }
    fn captures(&self) -> Vec<CaptureValue> { Vec::new() }
}
impl MaskMod for causal {
    fn keep(&self, b: i32, h: i32, q: i32, kv: i32) -> bool { causal(b, h, q, kv) }
}

fn score_mod(_: impl ScoreMod) {}
fn mask_mod(_: impl MaskMod) {}

pub fn user() { CALL }
"#;

/// What rustc says, or nothing where it compiles.
fn compile(folder: &Path, call: &str) -> String {
    let function = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/function.rs");
    let rustc = |name: &str, text: String, arguments: &[&str]| {
        let file = folder.join(format!("{name}.rs"));
        std::fs::write(&file, text).unwrap();
        let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--crate-name", name])
            .args(arguments)
            .arg(&file)
            .current_dir(folder)
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (made, said) = rustc("tilewright_codegen", CODEGEN.to_owned(), &[]);
    assert!(made, "{said}");
    let text = USER.replace("FUNCTION", &function.display().to_string()).replace("CALL", call);
    let (made, said) = rustc("user", text, &["--extern", "tilewright_codegen=libtilewright_codegen.rmeta"]);
    if made { String::new() } else { said }
}

#[test]
fn a_function_in_the_wrong_place_is_told_what_to_write() {
    let braces = "the name alone is the Rust function: write";
    let table: &[(&str, &[&str])] = &[
        ("score_mod(double {}); mask_mod(causal {});", &[]),
        (
            "score_mod(double);",
            &["{double}` is no score function", braces, "`softcap {}` where there are no captures"],
        ),
        (
            "mask_mod(causal);",
            &["{causal}` is no mask function", braces, "`causal {}` where there are no captures"],
        ),
        (
            "score_mod(causal {});",
            &["`causal` is no score function", "is a mask function: pass it to `mask_mod`"],
        ),
        (
            "mask_mod(double {});",
            &["`double` is no mask function", "is a score function: pass it to `score_mod`"],
        ),
        ("score_mod(causal);", &["is no score function", "pass it to `mask_mod`"]),
        ("score_mod(1.0);", &["is no score function"]),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (call, expected) in table {
        let said = compile(folder.path(), call);
        assert_eq!(said.is_empty(), expected.is_empty(), "{call}\n{said}");
        for sentence in *expected {
            assert!(said.contains(sentence), "{call}\n{said}\nneeded: {sentence}");
        }
    }
}
