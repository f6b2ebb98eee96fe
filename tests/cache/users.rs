//! A cubin is code: a cache that somebody else may have written to is refused.

use crate::support::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use tempfile::TempDir;
use tilewright::cache::{CacheError, KernelCache, Origin};

/// A user that owns nothing.
const NOBODY: u32 = 65534;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode is set");
}

#[test]
fn what_the_cache_makes_is_for_its_user_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    makes_private_files(dir.path());
    if is_root() {
        let told = TempDir::with_prefix_in("own", dir.path()).expect("a folder");
        chown(told.path(), Some(NOBODY), Some(NOBODY)).expect("it is given away");
        assert!(as_nobody(dir.path(), "private", told.path()), "as another user");
    }
}

/// The role of another user in the test above.
pub fn private() {
    makes_private_files(&told_folder());
}

/// Nobody else may write to what is made. Root's is for all to read, as what root installs.
fn makes_private_files(folder: &Path) {
    let (folders, files) = if is_root() { (0o755, 0o644) } else { (0o700, 0o600) };
    let cache = KernelCache::at(&folder.join("cache")).expect("a cache");
    kernel(1).put(&cache);
    cache.write_record("device", "file", b"{}").expect("it is written");
    fs::write(kernel(1).folder(&cache).join("kernel.cu"), "damaged").expect("it is written");
    assert!(!kernel(1).is_in(&cache));
    kernel(1).put(&cache);
    let _lock = cache.lock("lock", std::time::Duration::ZERO).expect("a lock");
    let mut paths = all_below(cache.root());
    paths.push(cache.root().to_path_buf());
    assert!(paths.len() > 15, "{paths:?}");
    for path in paths {
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        let mode = metadata.permissions().mode() & 0o777;
        assert_eq!(mode, if metadata.is_dir() { folders } else { files }, "{}", path.display());
    }
}

#[test]
fn folders_that_others_may_write_to_are_refused() {
    let (_dir, cache) = cache();
    let root = cache.root();
    for path in [root.to_path_buf(), root.join("v1")] {
        for mode in [0o777, 0o770, 0o702, 0o1777] {
            set_mode(&path, mode);
            let error = KernelCache::at(root).expect_err("others may write there");
            assert!(
                matches!(&error, CacheError::Writable { mode: found, .. } if *found == mode),
                "{error:?}"
            );
            let text = error.to_string();
            assert!(text.contains(&path.display().to_string()), "{text}");
            assert!(text.contains("TILEWRIGHT_CACHE"), "{text}");
            // A folder for all is to stay one.
            assert_eq!(text.contains("chmod"), mode & 0o1000 == 0, "{text}");
        }
        set_mode(&path, 0o755);
        KernelCache::at(root).expect("others may read it");
    }
}

#[test]
fn things_that_are_no_folders_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("a file");
    for root in [file.clone(), file.join("below")] {
        let error = KernelCache::at(&root).expect_err("there is a file");
        assert!(matches!(error, CacheError::NotAFolder { .. } | CacheError::Io { .. }), "{error:?}");
    }
    // The root may be a link, for it is the user's choice; what is below may not.
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    fs::create_dir(&real).and_then(|()| symlink(&real, &link)).expect("a link");
    set_mode(&real, 0o700);
    assert_eq!(KernelCache::at(&link).expect("a cache").root(), real.canonicalize().expect("a path"));
    fs::rename(real.join("v1"), dir.path().join("elsewhere")).expect("renamed");
    symlink(dir.path().join("elsewhere"), real.join("v1")).expect("a link");
    let error = KernelCache::at(&real).expect_err("v1 is a link");
    assert!(matches!(error, CacheError::NotAFolder { .. }), "{error:?}");
}

#[test]
fn another_users_folder_is_refused() {
    if !is_root() {
        eprintln!("skipped: only root can be somebody else (another_users_folder_is_refused)");
        return;
    }
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

/// Runs a role of this program as a user that owns nothing. Whether it succeeded.
fn as_nobody(dir: &Path, role: &str, folder: &Path) -> bool {
    let program = dir.join("program");
    if !program.exists() {
        fs::copy(std::env::current_exe().expect("this program"), &program).expect("a copy");
    }
    for path in [dir, program.as_path()] {
        set_mode(path, 0o755);
    }
    let mut command = child_of(&program, role, folder);
    command.uid(NOBODY).gid(NOBODY).current_dir("/").status().expect("it starts").success()
}

/// An image's cache: root has filled it, others read it.
#[test]
fn a_cache_of_roots_is_read_by_others_and_left_as_it_is() {
    if !is_root() {
        eprintln!(
            "skipped: only root can be somebody else (a_cache_of_roots_is_read_by_others_and_left_as_it_is)"
        );
        return;
    }
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

#[test]
fn folders_above_that_others_may_write_to_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let (above, root) = (dir.path().join("above"), dir.path().join("above/between/cache"));
    fs::create_dir_all(&root).expect("folders");
    set_mode(&root, 0o700);
    for (mode, allowed) in [(0o777, false), (0o775, false), (0o1777, true), (0o755, true)] {
        set_mode(&above, mode);
        // A group that is this user's alone counts as the user.
        let group = (mode == 0o775).then_some(NOBODY);
        if group.is_some() && chown(&above, None, group).is_err() {
            continue;
        }
        match KernelCache::at(&root) {
            Ok(_) => assert!(allowed, "mode {mode:o}"),
            Err(error) => {
                assert!(!allowed && error.is_unsafe(), "mode {mode:o}: {error}");
                let text = error.to_string();
                let path = above.canonicalize().expect("a path");
                assert!(text.contains(&*path.to_string_lossy()) && !text.contains("chmod"), "{text}");
            }
        }
    }
}
