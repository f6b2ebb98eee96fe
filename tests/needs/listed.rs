//! Whether every test is run or listed as ignored.

use std::fs;
use std::path::{Path, PathBuf};

/// Where there is no libtest, `#[test]` makes a function disappear: such targets have lists of their tests. Nowhere does a test
/// say itself that it is skipped, for it then counts as passed.
pub fn every_test_is_run_or_ignored() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = [
        "tests/gpu",
        "tests/needs",
        "tests/compile.rs",
        "tests/fuzz_corpora.rs",
        "examples/custom-kernel/tests",
    ];
    let mut found = Vec::new();
    for file in ["tests", "src", "codegen", "examples"].iter().flat_map(|folder| sources(&root.join(folder)))
    {
        let text = fs::read_to_string(&file).expect("it can be read");
        let name = file.strip_prefix(root).expect("it lies below").display().to_string();
        let has_list = listed.iter().any(|listed| name.starts_with(listed));
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
            if has_list && line == "#[test]" {
                found.push(format!("{name}:{number}: a test that no list names"));
            }
            if line.contains(concat!("\"skip", "ped: ")) {
                found.push(format!(
                    "{name}:{number}: a test that passes by returning; see tests/support/needs.rs"
                ));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder of the workspace").flatten();
    let all = entries.flat_map(|entry| {
        let path = entry.path();
        if path.is_dir() { sources(&path) } else { vec![path] }
    });
    all.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}
