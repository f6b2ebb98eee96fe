//! A cubin is code: a cache that somebody else may have written to is refused. What only root can try is in tests/needs.

use crate::support::*;
use std::fs;
use std::os::unix::fs::symlink;
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

/// A file that others may write to is not read, wherever it lies.
#[test]
fn files_that_others_may_write_to_are_not_used() {
    let (_dir, cache) = cache();
    kernel(1).put(&cache);
    cache.write_record("device", "file", b"{}").expect("it is written");
    let found = || (kernel(1).is_in(&cache), cache.read_record("device", "file").is_some());
    let entry = kernel(1).folder(&cache);
    let record = cache.records().remove(0).path;
    for (path, expected) in ["kernel.cu", "kernel.cubin", "meta.json"]
        .map(|name| (entry.join(name), (false, true)))
        .into_iter()
        .chain([(record, (true, false))])
    {
        set_mode(&path, 0o646);
        assert_eq!(found(), expected, "{}", path.display());
        let report = cache.verify();
        assert_eq!((report.unread.len(), report.broken.len()), (1, 0), "{report:?}");
        assert!(report.unread[0].1.contains("has mode 646"), "{report:?}");
        set_mode(&path, 0o644);
        assert_eq!(found(), (true, true), "it was left where it was");
    }
}

/// In a container the folders above are often for all to write: what is put in the cache's place is not used.
#[test]
fn a_folder_that_becomes_others_to_write_is_read_no_longer() {
    let (_dir, cache) = cache();
    kernel(1).put(&cache);
    cache.write_record("device", "file", b"{}").expect("it is written");
    let found = || (kernel(1).is_in(&cache), cache.read_record("device", "file").is_some());
    for path in [cache.root().to_path_buf(), cache.root().join("v1")] {
        set_mode(&path, 0o777);
        assert_eq!(found(), (false, false), "{}", path.display());
        set_mode(&path, 0o700);
        assert_eq!(found(), (true, true));
        let aside = cache.root().with_extension("aside");
        fs::rename(&path, &aside).expect("renamed");
        symlink(&aside, &path).expect("a link");
        assert_eq!(found(), (false, false), "{}", path.display());
        fs::remove_file(&path).and_then(|()| fs::rename(&aside, &path)).expect("as it was");
        assert_eq!(found(), (true, true));
    }
}
