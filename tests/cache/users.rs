//! A cubin is code: a cache that somebody else may have written to is refused.

use crate::support::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use tilewright::cache::{CacheError, KernelCache};

/// A user that owns nothing.
const NOBODY: u32 = 65534;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode is set");
}

#[test]
fn what_the_cache_makes_is_for_its_user_alone() {
    let (_dir, cache) = cache();
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
        assert_eq!(mode, if metadata.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
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
            assert!(text.contains("chmod go-w") && text.contains("TILEWRIGHT_CACHE"), "{text}");
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
    let (dir, cache) = cache();
    kernel(1).put(&cache);
    let v1 = cache.root().join("v1");
    for path in [cache.root(), v1.as_path()] {
        chown(path, Some(NOBODY), None).expect("it is given away");
        let error = KernelCache::at(cache.root()).expect_err("it is another user's");
        assert!(matches!(&error, CacheError::Owner { owner: NOBODY, user: 0, .. }), "{error:?}");
        assert!(error.to_string().contains("belongs to user 65534"), "{error}");
        chown(path, Some(0), None).expect("it is taken back");
    }

    // The other way round: somebody else comes upon root's, readable or not.
    let program = dir.path().join("program");
    fs::copy(std::env::current_exe().expect("this program"), &program).expect("a copy");
    for path in [dir.path(), program.as_path()] {
        set_mode(path, 0o755);
    }
    for mode in [0o755, 0o700] {
        set_mode(cache.root(), mode);
        let mut command = child_of(&program, "open", dir.path());
        let status = command.uid(NOBODY).gid(NOBODY).current_dir("/").status().expect("it starts");
        assert!(status.success(), "mode {mode:o}");
    }
}

/// Another user's process.
pub fn open() {
    let error = KernelCache::at(&told_folder().join("cache")).expect_err("it is root's");
    assert!(matches!(error, CacheError::Owner { owner: 0, user: NOBODY, .. }), "{error:?}");
}
