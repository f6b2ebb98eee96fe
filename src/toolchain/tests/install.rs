//! Installing, with shell scripts in pip's place.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use super::{folder, touch};
use crate::toolchain::install::PACKAGES;
use crate::toolchain::install::{Installer, install_with, requirements};
use crate::toolchain::layout::inspect;
use crate::toolchain::{Refusal, ToolchainError};

/// A stand-in for pip: a shell script that finds the folder after `--target`.
fn script(folder: &Path, name: &str, body: &str) -> Installer {
    let path = folder.join(name);
    let target = "while [ \"$1\" != --target ]; do shift; done; target=$2";
    fs::write(&path, format!("{target}\n{body}\n")).expect("a script");
    // Not run by its own name: a thread that forks meanwhile would hold the file open, and it would be busy.
    Installer { program: "/bin/sh".into(), arguments: vec![path.into()], absent: "No module named pip" }
}

const FILL: &str = "root=$target/nvidia/cu13; mkdir -p $root/lib $root/include
touch $root/lib/libnvrtc.so.13 $root/lib/libnvrtc-builtins.so.13.0
touch $root/include/cuda_fp16.h $root/include/cuda_bf16.h
echo Downloading; echo Successfully installed; echo $$ >> $(dirname $0)/runs";

#[test]
fn an_installation_is_there_whole_or_not_at_all() {
    let dir = folder();
    let target = dir.path().join("data/toolchain");
    let left = || fs::read_dir(dir.path().join("data")).map_or(0, |entries| entries.count());
    let lines = RefCell::new(Vec::new());
    let report = |line: &str| lines.borrow_mut().push(line.to_string());

    let missing = Installer { program: dir.path().join("nobody"), arguments: Vec::new(), absent: "" };
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

/// A killed installer removes nothing; the next one does, and leaves what another still works in.
#[test]
fn what_killed_installers_left_is_removed_and_nothing_else() {
    let dir = folder();
    let data = dir.path().join("data");
    let dead = ["toolchain.partial-a1B2c3", "toolchain.broken-ZZZZ99"];
    let kept = ["toolchain.partial-Alive7", "toolchain.partial-notes", "toolchain.partial-my.own"];
    for name in dead.iter().chain(&kept) {
        touch(data.join(name).join("packages/nvidia/cu13/lib/libnvrtc.so.13"));
    }
    touch(data.join("toolchain.partial-aFile1"));
    let alive = fs::File::open(data.join(kept[0])).expect("a folder");
    alive.lock().expect("a lock");
    let good = script(dir.path(), "good", FILL);
    install_with(&data.join("toolchain"), std::slice::from_ref(&good), &|_| ()).expect("an installation");
    for name in dead {
        assert!(!data.join(name).exists(), "{name}");
    }
    for name in kept.iter().chain(&["toolchain.partial-aFile1"]) {
        assert!(data.join(name).exists(), "{name}");
    }
    // An installer's own is locked while it works.
    let other = dir.path().join("other");
    let mask = "stat -c %a $(dirname $target) >> $(dirname $0)/modes";
    let probe = "flock -n $(dirname $target) true && echo free >> $(dirname $0)/free";
    let probing = script(dir.path(), "probing", &format!("{probe}\n{mask}\n{FILL}"));
    install_with(&other.join("toolchain"), std::slice::from_ref(&probing), &|_| ()).expect("an installation");
    assert!(!dir.path().join("free").exists(), "nobody could take its folder");
    let modes = fs::read_to_string(dir.path().join("modes")).expect("the script ran");
    assert_eq!(modes.trim(), "700", "nobody else can change what is fetched before it is looked at");
    let lock = fs::metadata(other.join("toolchain.lock")).expect("the lock");
    let mode = std::os::unix::fs::PermissionsExt::mode(&lock.permissions());
    assert_eq!(mode & 0o777, 0o600, "nobody else can hold it");
}

/// An installation is only worth its download where it may be loaded.
#[test]
fn nothing_is_installed_where_others_could_change_it() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder();
    let data = dir.path().join("data");
    fs::create_dir(&data).expect("a folder");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).expect("its mode is set");
    let good = script(dir.path(), "good", FILL);
    let error = install_with(&data.join("toolchain"), std::slice::from_ref(&good), &|_| ())
        .expect_err("it is for all");
    assert!(matches!(&error, ToolchainError::Shared { .. }), "{error:?}");
    assert!(error.to_string().contains("TILEWRIGHT_DATA") && !dir.path().join("runs").exists(), "{error}");
    let error = install_with(&data.join("below/it/toolchain"), std::slice::from_ref(&good), &|_| ())
        .expect_err("what is above is for all");
    assert!(matches!(&error, ToolchainError::Shared { .. }), "{error:?}");
    assert_eq!(fs::read_dir(&data).expect("a folder").count(), 0, "no folder is made either");

    // A mask that lets a group write is made good.
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).expect("its mode is set");
    let loose = script(dir.path(), "loose", &format!("umask 0\n{FILL}"));
    let root = install_with(&data.join("toolchain"), &[loose], &|_| ()).expect("an installation");
    assert!(inspect(&root).is_ok());
}

/// Installers see the hashes of both machines' wheels, run in a folder of their own, and take no module from elsewhere.
#[test]
fn installers_are_told_the_hashes_and_run_apart() {
    let dir = folder();
    let said = dir.path().join("said");
    let body = format!("shift; shift; (pwd; echo \"$@\"; cat \"$2\") > '{}'; {FILL}", said.display());
    let installer = script(dir.path(), "telling", &body);
    install_with(&dir.path().join("data/toolchain"), &[installer], &|_| ()).expect("an installation");
    let said = fs::read_to_string(said).expect("it ran");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("/data/toolchain.partial-"), "{said}");
    assert!(lines[1].starts_with("--requirement /"), "{said}");
    for package in PACKAGES {
        let line = lines.iter().find(|line| line.starts_with(package)).expect("a requirement");
        let hashes: Vec<&str> = line.split(" --hash=sha256:").skip(1).collect();
        assert_eq!(hashes.len(), 2, "{line}");
        assert!(
            hashes.iter().all(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
    }
    // Whence the packages come may be said, and is no argument that everybody can read.
    let set = |name: &str| match name {
        "PIP_INDEX_URL" => Some("https://me:secret@mirror/simple".to_string()),
        "PIP_FIND_LINKS" => Some("https://a/ /nowhere".to_string()),
        _ => None,
    };
    let text = requirements(set);
    for line in
        ["--index-url https://me:secret@mirror/simple", "--find-links https://a/", "--find-links /nowhere"]
    {
        assert!(text.lines().any(|found| found == line), "{text}");
    }
}
