//! Caches and libraries among users: only root can be somebody else.

use crate::files::copy_program;
use crate::support::*;
use std::fs;
use std::os::unix::fs::{chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use tempfile::TempDir;
use tilewright::cache::{CacheError, KernelCache, Origin};
use tilewright::toolchain::{Environment, Exposure, NVRTC_VARIABLE, Refusal, Toolchain, ToolchainError};

pub const TESTS: &[crate::needs::Test<()>] = &[
    ("users::another_users_folder_is_refused", another_users_folder_is_refused),
    (
        "users::a_folder_that_becomes_another_users_is_read_no_longer",
        a_folder_that_becomes_another_users_is_read_no_longer,
    ),
    ("users::what_another_user_owns_is_not_loaded", what_another_user_owns_is_not_loaded),
    (
        "users::a_cache_of_roots_is_read_by_others_and_left_as_it_is",
        a_cache_of_roots_is_read_by_others_and_left_as_it_is,
    ),
    ("users::what_others_make_is_theirs_alone", what_others_make_is_theirs_alone),
    ("users::the_owner_of_the_program_is_trusted", the_owner_of_the_program_is_trusted),
];

fn another_users_folder_is_refused(_: &()) {
    let (_dir, cache) = cache();
    kernel(1).put(&cache);
    let v1 = cache.root().join("v1");
    for path in [cache.root(), v1.as_path()] {
        chown(path, Some(NOBODY), None).expect("it is given away");
        let error = KernelCache::at(cache.root()).expect_err("it is another user's");
        assert!(matches!(&error, CacheError::Owner { owner: NOBODY, user: 0, .. }), "{error:?}");
        assert!(error.to_string().contains("belongs to user 65534"), "{error}");
        chown(path, Some(0), None).expect("it is taken back");
    }
}

fn a_folder_that_becomes_another_users_is_read_no_longer(_: &()) {
    let (_dir, cache) = cache();
    kernel(1).put(&cache);
    cache.write_record("device", "file", b"{}").expect("it is written");
    let found = || (kernel(1).is_in(&cache), cache.read_record("device", "file").is_some());
    let give = |path: &Path, user| chown(path, Some(user), None).expect("it changes hands");
    for path in [cache.root().to_path_buf(), cache.root().join("v1")] {
        assert_eq!(found(), (true, true));
        give(&path, NOBODY);
        assert_eq!(found(), (false, false), "{}", path.display());
        give(&path, 0);
        assert_eq!(found(), (true, true));
    }
    // A file alone: of a cache that was unpacked from an archive, say, with the owners it names.
    let entry = kernel(1).folder(&cache);
    for name in ["kernel.cu", "kernel.cubin", "meta.json"] {
        give(&entry.join(name), NOBODY);
        assert_eq!(found(), (false, true), "{name}");
        let report = cache.verify();
        assert_eq!((report.unread.len(), report.broken.len()), (1, 0), "{name}: {report:?}");
        assert!(report.unread[0].1.starts_with("it belongs to user 65534"), "{report:?}");
        give(&entry.join(name), 0);
        assert_eq!(found(), (true, true), "it was left where it was: {name}");
    }
    let record = cache.records().remove(0).path;
    give(&record, NOBODY);
    assert_eq!(found(), (true, false));
    give(&record, 0);
    assert_eq!(found(), (true, true));
    // What is compiled anew takes the place of what cannot be trusted.
    give(&entry.join("kernel.cubin"), NOBODY);
    kernel(1).put(&cache);
    assert_eq!(found(), (true, true));
}

/// An NVRTC's files and the folders above belong to this user or to root, and so does a link to them.
fn what_another_user_owns_is_not_loaded(_: &()) {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path().canonicalize().expect("a path");
    let (home, links) = (root.join("above/cuda"), root.join("links"));
    let files =
        ["lib/libnvrtc.so.13", "lib/libnvrtc-builtins.so.13.0", "include/cuda_fp16.h", "include/cuda_bf16.h"];
    for file in files.map(|name| home.join(name)) {
        fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        fs::write(file, "").expect("a file");
    }
    // Where anybody may make files, and nobody can remove another's.
    fs::create_dir(&links).and_then(|()| symlink(&home, links.join("cuda"))).expect("a link");
    symlink("cuda", links.join("first")).expect("a link");
    set_mode(&links, 0o1777);
    let refusal = |place: &Path| {
        let told = Environment::empty(&root).with_variable(NVRTC_VARIABLE, place);
        match Toolchain::find_in(&told).expect_err("there is no code in it") {
            ToolchainError::Told { refusal, .. } => refusal,
            error => panic!("{error:?}"),
        }
    };
    let own = |place: &Path| {
        let refusal = refusal(place);
        assert!(!matches!(refusal, Refusal::Exposed { .. }), "all of it is ours: {refusal:?}");
    };
    let exposure = Exposure::Owner { owner: NOBODY, user: 0 };
    own(&home);
    for path in ["above", "above/cuda"]
        .map(|name| root.join(name))
        .into_iter()
        .chain(files.map(|name| home.join(name)))
    {
        chown(&path, Some(NOBODY), None).expect("it is given away");
        assert_eq!(refusal(&home), Refusal::Exposed { path: path.clone(), exposure });
        chown(&path, Some(0), None).expect("it is taken back");
    }
    let ways = ["cuda", "first"].map(|name| links.join(name));
    ways.iter().for_each(|way| own(way));
    lchown(&ways[0], Some(NOBODY), None).expect("it is given away");
    for way in &ways {
        assert_eq!(refusal(way), Refusal::Exposed { path: ways[0].clone(), exposure });
    }
    own(&home);
}

/// Runs a role of this program as a user that owns nothing. Whether it succeeded.
fn as_nobody(dir: &Path, role: &str, folder: &Path) -> bool {
    let program = dir.join("program");
    if !program.exists() {
        copy_program(std::env::current_exe().expect("this program"), &program);
    }
    for path in [dir, program.as_path()] {
        set_mode(path, 0o755);
    }
    let mut command = child_of(&program, role, folder);
    command.uid(NOBODY).gid(NOBODY).current_dir("/").status().expect("it starts").success()
}

/// An image's cache: root has filled it, others read it.
fn a_cache_of_roots_is_read_by_others_and_left_as_it_is(_: &()) {
    let (dir, cache) = cache();
    kernel(1).put(&cache);
    kernel(2).put(&cache);
    cache.write_record("device", "file", b"{}").expect("it is written");
    fs::write(kernel(2).folder(&cache).join("kernel.cubin"), "damaged").expect("it is written");
    let state = || -> Vec<_> {
        let paths = all_below(cache.root());
        paths.into_iter().map(|path| (fs::metadata(&path).and_then(|m| m.modified()).ok(), path)).collect()
    };
    let before = state();
    assert!(as_nobody(dir.path(), "read", dir.path()));
    assert_eq!(state(), before, "nothing is written");
    for arguments in [&["clear"][..], &["prune", "--max", "0"]] {
        let run = |more: &[&str]| {
            let mut command = crate::outputs::as_nobody(dir.path());
            command.arg("cache").args(arguments).args(more).env("TILEWRIGHT_CACHE", cache.root());
            command.output().expect("it starts")
        };
        let (said, json) = (run(&[]), run(&["--json"]));
        assert_eq!((said.status.code(), json.status.code()), (Some(1), Some(1)));
        let text = String::from_utf8_lossy(&said.stderr);
        assert!(text.contains("error: could not remove ") && text.contains("Permission denied"), "{text}");
        assert!(said.stdout.is_empty(), "no report");
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("one JSON document");
        assert_eq!(json["error"]["kind"], "cache", "{json}");
    }
    // What is damaged stays, and what is said of it is so.
    let mut verify = crate::outputs::as_nobody(dir.path());
    let said =
        verify.args(["cache", "verify"]).env("TILEWRIGHT_CACHE", cache.root()).output().expect("it starts");
    let text = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(
        text.contains("1 kernels and 1 tuning records are sound, 1 are not; they stay where they are"),
        "{text}"
    );
    assert!(!text.contains("quarantine"), "{text}");
    assert_eq!(state(), before, "nothing is removed");
    // Where root's mask lets nobody read, that is an error and not a cache without kernels.
    set_mode(cache.root(), 0o700);
    assert!(as_nobody(dir.path(), "locked_out", dir.path()));
    set_mode(cache.root(), 0o755);
    set_mode(&cache.root().join("v1"), 0o700);
    assert!(as_nobody(dir.path(), "locked_out", dir.path()));
}

/// Another user's process, which finds in root's cache what is sound and compiles the rest.
pub fn read() {
    let cache = KernelCache::at(&told_folder().join("cache")).expect("it is root's, and may be read");
    assert!(kernel(1).is_in(&cache));
    assert_eq!(cache.read_record("device", "file"), Some(b"{}".to_vec()));
    for number in [1, 2, 3] {
        let kernel = kernel(number);
        let compile = || Ok::<_, ()>(kernel.cubin.clone());
        let got = cache.get_or_compile(&kernel.key, &kernel.source, compile).expect("a cubin");
        let origin = if number == 1 { Origin::Cache } else { Origin::Compiled };
        assert_eq!(got, (kernel.cubin.clone(), origin), "kernel {number}");
    }
    assert_eq!((cache.entries().len(), cache.records().len()), (2, 1));
    assert!(cache.lock("lock", std::time::Duration::from_secs(60)).is_none(), "and does not wait for one");
    let error = cache.put(&kernel(3).key, &kernel(3).source, &kernel(3).cubin).expect_err("it is root's");
    assert!(matches!(error, CacheError::Io { .. }), "{error:?}");
}

/// Another user's process, which may not read root's cache.
pub fn locked_out() {
    let error = KernelCache::at(&told_folder().join("cache")).expect_err("it cannot be read");
    assert!(matches!(error, CacheError::Unreadable { .. }), "{error:?}");
    assert!(!error.is_unsafe() && error.to_string().contains("a+rX"), "{error}");
}

/// Whoever owns the program can do anything in its user's name already: an administrator, say, whose Python all share.
fn the_owner_of_the_program_is_trusted(_: &()) {
    let (dir, cache) = cache();
    kernel(1).put(&cache);
    let program = dir.path().join("program");
    copy_program(std::env::current_exe().expect("this program"), &program);
    set_mode(&program, 0o755);
    let reads = || child_of(&program, "trusting", dir.path()).status().expect("it starts").success();
    assert!(reads());
    for path in [cache.root().to_path_buf(), cache.root().join("v1")] {
        chown(path, Some(NOBODY), None).expect("it is given away");
    }
    assert!(!reads());
    chown(&program, Some(NOBODY), None).expect("it is given away");
    assert!(reads());
}

/// A process that reads the cache.
pub fn trusting() {
    let cache = KernelCache::at(&told_folder().join("cache")).expect("it is trusted");
    assert!(kernel(1).is_in(&cache));
}

/// Root's cache is for all to read, as the test of this process's own user shows where that is root; another user's is not.
fn what_others_make_is_theirs_alone(_: &()) {
    let dir = tempfile::tempdir().expect("a folder");
    let told = TempDir::with_prefix_in("own", dir.path()).expect("a folder");
    chown(told.path(), Some(NOBODY), Some(NOBODY)).expect("it is given away");
    assert!(as_nobody(dir.path(), "private", told.path()), "as another user");
}

/// The role of another user in the test above.
pub fn private() {
    makes_private_files(&told_folder());
}
