//! A cubin is code: a cache that somebody else may have written to is refused.

use crate::support::*;
use std::fs;
use std::os::unix::fs::{chown, symlink};
use tilewright::cache::{CacheError, KernelCache};

#[test]
fn what_the_cache_makes_is_for_its_user_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    makes_private_files(dir.path());
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
