use std::cell::RefCell;
use std::fs;
use std::path::Path;

use super::find::{Located, inspect, search};
use super::install::{Installer, install_with};
use super::*;

fn touch(path: impl AsRef<Path>) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    fs::write(path, "").expect("a file");
}

/// Files that look like a toolchain.
fn plant(root: &Path, libraries: &str, version: (i32, i32)) {
    let (major, minor) = version;
    touch(root.join(libraries).join(format!("libnvrtc.so.{major}")));
    touch(root.join(libraries).join(format!("libnvrtc-builtins.so.{major}.{minor}")));
    touch(root.join("include/cuda_fp16.h"));
    touch(root.join("include/cuda_bf16.h"));
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// The place that would be loaded, and the list.
fn found(environment: &Environment) -> (Option<Located>, Vec<Searched>) {
    search(environment, |located| Ok((located.clone(), (13, 0))))
}

#[test]
fn places_are_tried_in_order() {
    let dir = folder();
    let root = dir.path();
    let data = root.join("data");
    let python = root.join("python");
    plant(&data.join("toolchain/nvidia/cu13"), "lib", (13, 0));
    let mut environment = Environment::empty(root)
        .with_variable(DATA_VARIABLE, &data)
        .with_python_folders(vec![python.clone()]);
    let expect = |environment: &Environment, place: &Path, source: Source| {
        let (located, searched) = found(environment);
        assert!(located.expect("a toolchain").library.starts_with(place));
        let last = searched.last().expect("an entry");
        assert_eq!((last.place.as_path(), last.source), (place, source));
        assert_eq!(last.outcome, Outcome::Used { version: (13, 0) });
    };
    // Each place that is added stands before the ones that are there.
    expect(&environment, &data.join("toolchain/nvidia/cu13"), Source::DataFolder);
    plant(&python.join("nvidia/cu13"), "lib", (13, 0));
    expect(&environment, &python.join("nvidia/cu13"), Source::Python);
    plant(&root.join("usr/local/cuda-12.9"), "lib64", (12, 9));
    expect(&environment, &root.join("usr/local/cuda-12.9"), Source::DefaultFolder);
    plant(&root.join("usr/local/cuda-13.1"), "targets/x86_64-linux/lib", (13, 1));
    expect(&environment, &root.join("usr/local/cuda-13.1"), Source::DefaultFolder);
    plant(&root.join("home"), "lib64", (13, 0));
    environment = environment.with_variable("CUDA_HOME", root.join("home"));
    expect(&environment, &root.join("home"), Source::Variable("CUDA_HOME"));
    plant(&root.join("told"), "lib", (13, 0));
    environment = environment.with_variable(NVRTC_VARIABLE, root.join("told/lib"));
    expect(&environment, &root.join("told/lib"), Source::Variable(NVRTC_VARIABLE));
    environment = environment.with_variable(NVRTC_VARIABLE, root.join("told/lib/libnvrtc.so.13"));
    expect(&environment, &root.join("told/lib/libnvrtc.so.13"), Source::Variable(NVRTC_VARIABLE));
}

#[test]
fn every_refusal_has_its_reason() {
    let dir = folder();
    let root = dir.path();
    let place = |name: &str| root.join(name);
    let refusal = |name: &str| inspect(&place(name)).expect_err(name);

    assert_eq!(refusal("nowhere"), Refusal::Missing);
    fs::create_dir(place("empty")).expect("a folder");
    assert_eq!(refusal("empty"), Refusal::NoLibrary);
    touch(place("alone/lib/libnvrtc.so.13"));
    touch(place("alone/lib/libnvrtc.alt.so.13"));
    assert!(matches!(refusal("alone"), Refusal::NoBuiltins { .. }));
    plant(&place("old"), "lib", (12, 4));
    assert_eq!(refusal("old"), Refusal::TooOld { major: 12, minor: 4 });
    assert!(refusal("old").to_string().contains("NVRTC 12.4, and 12.8 or newer"));
    plant(&place("bare"), "lib", (13, 0));
    fs::remove_file(place("bare/include/cuda_bf16.h")).expect("a file");
    assert!(matches!(refusal("bare"), Refusal::NoHeaders { .. }));
}

#[test]
fn builtins_belong_to_their_library() {
    let dir = folder();
    plant(dir.path(), "lib", (13, 0));
    touch(dir.path().join("lib/libnvrtc-builtins.so.12.9"));
    touch(dir.path().join("lib/libnvrtc-builtins.so.14.0"));
    let located = inspect(dir.path()).expect("a toolchain");
    assert!(located.builtins.ends_with("lib/libnvrtc-builtins.so.13.0"), "{located:?}");
}

#[test]
fn the_packages_of_cuda_12_are_two_folders() {
    let dir = folder();
    let nvidia = dir.path().join("site-packages/nvidia");
    touch(nvidia.join("cuda_nvrtc/lib/libnvrtc.so.12"));
    touch(nvidia.join("cuda_nvrtc/lib/libnvrtc-builtins.so.12.8"));
    touch(nvidia.join("cuda_runtime/include/cuda_fp16.h"));
    touch(nvidia.join("cuda_runtime/include/cuda_bf16.h"));
    let environment =
        Environment::empty(dir.path()).with_python_folders(vec![dir.path().join("site-packages")]);
    let located = found(&environment).0.expect("a toolchain");
    assert!(located.include.join("cuda_fp16.h").is_file());

    let prefix = dir.path().join("venv");
    plant(&prefix.join("lib/python3.12/site-packages/nvidia/cu13"), "lib", (13, 0));
    let environment = Environment::empty(dir.path()).with_variable("VIRTUAL_ENV", &prefix);
    assert!(found(&environment).0.expect("a toolchain").library.starts_with(&prefix));
}

#[test]
fn nothing_found_lists_every_place() {
    let dir = folder();
    let environment = Environment::empty(dir.path())
        .with_variable("CUDA_HOME", dir.path().join("gone"))
        .with_variable(DATA_VARIABLE, dir.path().join("data"));
    let error = Toolchain::find_in(&environment).expect_err("there is nothing");
    let ToolchainError::NotFound { searched } = &error else { panic!("{error:?}") };
    let sources: Vec<_> = searched.iter().map(|searched| searched.source).collect();
    assert_eq!(
        sources,
        [Source::Variable("CUDA_HOME"), Source::DefaultFolder, Source::Python, Source::DataFolder]
    );
    let text = error.to_string();
    assert!(text.contains("gone (CUDA_HOME): it does not exist"), "{text}");
    assert!(text.contains("tilewright toolchain install"), "{text}");
}

#[test]
fn a_library_that_does_not_load_is_passed_over() {
    let dir = folder();
    plant(&dir.path().join("usr/local/cuda"), "lib64", (13, 0));
    let error = Toolchain::find_in(&Environment::empty(dir.path())).expect_err("empty files do not load");
    let ToolchainError::NotFound { searched } = &error else { panic!("{error:?}") };
    assert!(matches!(searched[0].outcome, Outcome::Refused(Refusal::CannotLoad { .. })), "{error}");
}

#[test]
fn a_wrong_variable_is_not_passed_over() {
    let dir = folder();
    plant(&dir.path().join("usr/local/cuda"), "lib64", (13, 0));
    let environment = Environment::empty(dir.path()).with_variable(NVRTC_VARIABLE, dir.path().join("typo"));
    let error = Toolchain::find_in(&environment).expect_err("the variable is wrong");
    assert!(matches!(&error, ToolchainError::Told { refusal: Refusal::Missing, .. }), "{error:?}");
    assert!(error.to_string().contains("TILEWRIGHT_NVRTC is set to"), "{error}");
}

/// A stand-in for pip: a shell script that finds the folder after `--target`.
#[cfg(unix)]
fn script(folder: &Path, name: &str, body: &str) -> Installer {
    let path = folder.join(name);
    let target = "while [ \"$1\" != --target ]; do shift; done; target=$2";
    fs::write(&path, format!("{target}\n{body}\n")).expect("a script");
    // Not run by its own name: a thread that forks meanwhile would hold the file open, and it would be busy.
    let path: &'static str = path.into_os_string().into_string().expect("a UTF-8 path").leak();
    Installer { program: "/bin/sh".into(), arguments: vec![path].leak(), absent: "No module named pip" }
}

#[cfg(unix)]
const FILL: &str = "root=$target/nvidia/cu13; mkdir -p $root/lib $root/include
touch $root/lib/libnvrtc.so.13 $root/lib/libnvrtc-builtins.so.13.0
touch $root/include/cuda_fp16.h $root/include/cuda_bf16.h
echo Downloading; echo Successfully installed; echo $$ >> $(dirname $0)/runs";

#[cfg(unix)]
#[test]
fn an_installation_is_there_whole_or_not_at_all() {
    let dir = folder();
    let target = dir.path().join("data/toolchain");
    let left = || fs::read_dir(dir.path().join("data")).map_or(0, |entries| entries.count());
    let lines = RefCell::new(Vec::new());
    let report = |line: &str| lines.borrow_mut().push(line.to_string());

    let missing = Installer { program: dir.path().join("nobody"), arguments: &[], absent: "" };
    let without = script(dir.path(), "without", "echo No module named pip >&2; exit 1");
    let error = install_with(&target, &[missing.clone(), without.clone()], &report).expect_err("no pip");
    assert!(matches!(&error, ToolchainError::NoPython { tried } if tried.len() == 2), "{error}");

    let failing = script(dir.path(), "failing", "mkdir -p $target/nvidia; echo no network >&2; exit 3");
    let error = install_with(&target, &[failing], &report).expect_err("pip fails");
    assert!(matches!(&error, ToolchainError::PipFailed { .. }), "{error:?}");
    assert!(error.to_string().contains("no network"), "{error}");

    let useless = script(dir.path(), "useless", "true");
    let error = install_with(&target, &[useless], &report).expect_err("nothing came of it");
    assert!(matches!(&error, ToolchainError::Incomplete { refusal: Refusal::Missing, .. }), "{error:?}");
    assert!(!target.exists());
    assert_eq!(left(), 1, "failures leave only the lock");

    // A broken one is replaced.
    touch(target.join("nvidia/cu13/lib/libnvrtc.so.13"));
    let good = script(dir.path(), "good", FILL);
    let root = install_with(&target, &[missing, without, good.clone()], &report).expect("an installation");
    assert!(inspect(&root).is_ok());
    assert_eq!(left(), 2, "the lock and the toolchain");
    assert!(lines.borrow().iter().any(|line| line == "Downloading"));
    // One that is there is not fetched again.
    assert_eq!(install_with(&target, &[], &report).expect("it is there"), root);
}

#[cfg(unix)]
#[test]
fn installers_at_the_same_time_share_one() {
    let dir = folder();
    let target = dir.path().join("data/toolchain");
    let slow = script(dir.path(), "slow", &format!("sleep 0.2\n{FILL}"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| install_with(&target, std::slice::from_ref(&slow), &|_| ()).expect("one of them"));
        }
    });
    let runs = fs::read_to_string(dir.path().join("runs")).expect("somebody ran");
    assert_eq!(runs.lines().count(), 1, "the others waited for the first");
}
