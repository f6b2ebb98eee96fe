//! Writing what is generated: into this repository, and from a user's `build.rs`.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;
use support::{DECLARATION, root, write_kernel};
use tilewright_codegen::{Difference, emit, generated, sync};

/// The committed folder is what the generator makes of `templates/`.
#[test]
fn generated_is_up_to_date() {
    let difference = sync(&root().join("templates"), &root().join("generated"), true).unwrap();
    assert_eq!(difference, Difference::default(), "run `cargo run -p tilewright-codegen`");
}

#[test]
fn the_bindings_of_a_kernel() {
    let folder = tempfile::tempdir().unwrap();
    write_kernel(folder.path());
    let files = generated(folder.path()).unwrap();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["manifest.json", "mod.rs", "scale.rs", "sources/scale_sm80_bf16_block64_warps4.cu"]);
    insta::assert_snapshot!("bindings", files[2].1);
    insta::assert_snapshot!("manifest", files[0].1);
}

#[test]
fn sync_writes_what_differs_and_removes_what_it_does_not_make() {
    let folder = tempfile::tempdir().unwrap();
    let (templates, out) = (folder.path().join("templates"), folder.path().join("generated"));
    write_kernel(&templates);
    let all: Vec<String> = generated(&templates).unwrap().into_iter().map(|(name, _)| name).collect();

    // A check of a folder that is not there makes none.
    let difference = sync(&templates, &out, true).unwrap();
    assert_eq!((&difference.stale, difference.extra.len(), out.exists()), (&all, 0, false));

    assert_eq!(sync(&templates, &out, false).unwrap().stale, all);
    let written = snapshot(&out);
    assert_eq!(written.len(), all.len());
    assert!(sync(&templates, &out, true).unwrap().is_empty());
    assert!(sync(&templates, &out, false).unwrap().is_empty());
    assert_eq!(snapshot(&out), written, "a second run writes nothing");

    fs::write(out.join("mod.rs"), "stale").unwrap();
    fs::remove_file(out.join("manifest.json")).unwrap();
    fs::write(out.join("sources/old.cu"), "extra").unwrap();
    fs::write(out.join("old.rs"), "extra").unwrap();
    let spoilt = snapshot(&out);
    let difference = sync(&templates, &out, true).unwrap();
    assert_eq!(difference.stale, ["manifest.json", "mod.rs"]);
    assert_eq!(difference.extra, ["old.rs", "sources/old.cu"]);
    assert_eq!(snapshot(&out), spoilt, "a check touches nothing");

    assert_eq!(sync(&templates, &out, false).unwrap(), difference);
    assert!(sync(&templates, &out, true).unwrap().is_empty());
}

/// A mistake leaves the generated folder as it was.
#[test]
fn a_broken_kernel_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (templates, out) = (folder.path().join("templates"), folder.path().join("generated"));
    write_kernel(&templates);
    sync(&templates, &out, false).unwrap();
    let before = snapshot(&out);
    fs::write(templates.join("scale/kernel.rs"), DECLARATION.replace("f32,", "f64,")).unwrap();
    assert!(sync(&templates, &out, false).is_err());
    assert_eq!(snapshot(&out), before);
}

/// Every file with its text and the time it was written.
fn snapshot(folder: &Path) -> Vec<(String, String, SystemTime)> {
    let mut found = Vec::new();
    for folder in [folder.to_owned(), folder.join("sources")] {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|e| e.path().is_file()) {
            let (path, time) = (entry.path(), entry.metadata().unwrap().modified().unwrap());
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap(), time));
        }
    }
    found.sort();
    found
}

/// `emit` as Cargo runs it: with the variables of a build script, in a process of its own.
#[test]
fn a_build_script_gets_its_bindings() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("crate"), folder.path().join("out"));
    write_kernel(&root.join("kernels"));
    fs::create_dir(&out).unwrap();
    let build = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "build_script", "--ignored", "--nocapture"])
            .env("CARGO_MANIFEST_DIR", &root)
            .env("OUT_DIR", &out)
            .output()
            .unwrap()
    };
    let output = build();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let kernels = root.join("kernels");
    assert!(said.contains(&format!("cargo::rerun-if-changed={}", kernels.display())), "{said}");

    let bindings = fs::read_to_string(out.join("tilewright.rs")).unwrap();
    assert!(bindings.starts_with("#[doc = \"Scales rows.\"]\npub mod scale {\n"), "{bindings}");
    let body = format!("include_str!({:?})", kernels.join("scale/sm80.cu"));
    assert!(bindings.contains(&body), "{bindings}");
    build();
    assert_eq!(fs::read_to_string(out.join("tilewright.rs")).unwrap(), bindings);

    // Mistakes in a declaration and in a template are found when the crate is built.
    for (file, from, to, expected) in [
        ("kernel.rs", "factor: f32", "factor: f64", "scale/kernel.rs:8:17: `f64` is no argument type"),
        ("sm80.cu", "scale/load.cuh", "scale/store.cuh", "template scale/sm80.cu: "),
    ] {
        let path = kernels.join("scale").join(file);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(from, to)).unwrap();
        let output = build();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && said.contains(expected), "{said}");
        fs::write(&path, text).unwrap();
    }
}

/// The other process of the test above.
#[test]
#[ignore = "a part of another test"]
fn build_script() {
    if let Err(error) = emit("kernels/") {
        println!("{error}");
        std::process::exit(1);
    }
}
