//! Embeds what kernels share, so that a new file in `lib/` needs no list to be kept.

use std::fmt::Write;
use std::path::Path;

fn main() {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("lib");
    println!("cargo::rerun-if-changed={}", lib.display());
    let mut names: Vec<String> = std::fs::read_dir(&lib)
        .unwrap_or_else(|error| panic!("reading {}: {error}", lib.display()))
        .map(|entry| entry.expect("a readable entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".cuh") || name.ends_with(".rs"))
        .collect();
    names.sort();
    let mut code = String::from(
        "/// Headers and shared declarations as (path, text).\nconst LIBRARY: &[(&str, &str)] = &[\n",
    );
    for name in names {
        let path = lib.join(&name);
        writeln!(code, "    (\"lib/{name}\", include_str!({path:?})),").expect("writing to a string");
    }
    code += "];\n";
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("library.rs"), code).expect("writing library.rs");
}
