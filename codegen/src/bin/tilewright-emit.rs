//! Brings `generated/` up to date with `templates/`: `cargo run -p tilewright-codegen [-- --check]`.
//!
//! A program of its own, because the `tilewright` crate does not build while its bindings are out of date.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let check = std::env::args().any(|arg| arg == "--check");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let difference = match tilewright_codegen::sync(&root.join("templates"), &root.join("generated"), check) {
        Ok(difference) => difference,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (stale, extra) = if check { ("out of date", "not generated") } else { ("written", "removed") };
    difference.stale.iter().for_each(|name| println!("{stale}: generated/{name}"));
    difference.extra.iter().for_each(|name| println!("{extra}: generated/{name}"));
    if check && !difference.is_empty() {
        eprintln!(
            "error: generated/ differs from what the generator makes: run `cargo run -p tilewright-codegen`"
        );
        return ExitCode::FAILURE;
    }
    println!("generated/ is up to date");
    ExitCode::SUCCESS
}
