//! Disks that are full or cannot be written to: they cost the caching, never the kernel.

use crate::support::*;
use std::fs;
use tilewright::cache::{CacheError, KernelCache, Origin};

pub const TESTS: &[crate::needs::Test<()>] = &[
    ("disk::a_folder_that_can_only_be_read", a_folder_that_can_only_be_read),
    ("disk::an_empty_folder_that_can_only_be_read", an_empty_folder_that_can_only_be_read),
    ("disk::a_full_disk", a_full_disk),
];

fn is_compiled(kernel: &Kernel, cache: &KernelCache) {
    let got = cache.get_or_compile(&kernel.key, &kernel.source, || Ok::<_, ()>(kernel.cubin.clone()));
    assert_eq!(got, Ok((kernel.cubin.clone(), Origin::Compiled)));
}

fn a_folder_that_can_only_be_read(_: &()) {
    let disk = Disk::mount("4m");
    let (one, two, three) = (kernel(1), kernel(2), kernel(3));
    let cache = KernelCache::at(disk.path()).expect("a cache");
    one.put(&cache);
    two.put(&cache);
    cache.write_record("device", "file", b"{}").expect("it is written");
    fs::write(two.folder(&cache).join("kernel.cubin"), "damaged").expect("it is written");
    disk.make_read_only();

    let cache = KernelCache::at(disk.path()).expect("a cache that stores nothing");
    assert!(one.is_in(&cache));
    assert!(cache.read_record("device", "file").is_some());
    for missing in [&two, &three] {
        assert!(!missing.is_in(&cache));
        is_compiled(missing, &cache);
        let error =
            cache.put(&missing.key, &missing.source, &missing.cubin).expect_err("it cannot be written");
        assert!(matches!(&error, CacheError::Io { .. }), "{error:?}");
        assert!(error.to_string().contains("TILEWRIGHT_CACHE"), "{error}");
    }
    cache.write_record("device", "file", b"[]").expect_err("it cannot be written");
    assert_eq!(cache.read_record("device", "file"), Some(b"{}".to_vec()));
    let report = cache.verify();
    assert_eq!((report.broken.len(), report.left.len(), report.unread.len()), (1, 1, 0));
    assert!(report.left[0].0 == report.broken[0].0 && report.left[0].1.contains("Read-only file system"));
    for error in
        [cache.prune(0).map(drop), cache.clear().map(drop)].map(|result| result.expect_err("nothing goes"))
    {
        assert!(matches!(&error, CacheError::Io { action: "remove", .. }), "{error:?}");
        assert!(error.to_string().contains("Read-only file system"), "{error}");
    }
    // What it holds may stay.
    assert_eq!(cache.prune(u64::MAX).map(|report| report.removed).ok(), Some(0));
    assert!(one.is_in(&cache));
}

fn an_empty_folder_that_can_only_be_read(_: &()) {
    let disk = Disk::mount("1m");
    disk.make_read_only();
    let cache = KernelCache::at(disk.path()).expect("a cache that stores nothing");
    is_compiled(&kernel(1), &cache);
    assert_eq!((cache.entries().len(), cache.records().len()), (0, 0));
    let error = KernelCache::at(&disk.path().join("below")).expect_err("it cannot be created");
    assert!(matches!(error, CacheError::Io { action: "create", .. }), "{error:?}");
}

fn a_full_disk(_: &()) {
    let disk = Disk::mount("1m");
    let cache = KernelCache::at(&disk.path().join("cache")).expect("a cache");
    let kernels: Vec<Kernel> = (0..20).map(|number| kernel_of(number, 100_000, (13, 0))).collect();
    let stored =
        kernels.iter().take_while(|kernel| cache.put(&kernel.key, &kernel.source, &kernel.cubin).is_ok());
    let stored = stored.count();
    assert!((5..15).contains(&stored), "{stored} kernels on the disk");
    // To the last byte.
    let filler = disk.path().join("filler");
    let _ = fs::write(&filler, vec![0; 2 << 20]);

    let next = &kernels[stored];
    let error = cache.put(&next.key, &next.source, &next.cubin).expect_err("there is no room");
    assert!(matches!(error, CacheError::Io { .. }), "{error:?}");
    is_compiled(next, &cache);
    assert_eq!(temporaries(&cache), Vec::<std::path::PathBuf>::new(), "nothing half-written stays");
    cache.write_record("device", "file", &vec![b' '; 100_000]).expect_err("there is no room");
    assert_eq!(temporaries(&cache), Vec::<std::path::PathBuf>::new());
    assert!(kernels[..stored].iter().all(|kernel| kernel.is_in(&cache)));
    assert_eq!(cache.entries().len(), stored);

    // A damaged entry makes room for its own replacement once the quarantine is emptied.
    fs::write(kernels[0].folder(&cache).join("kernel.cu"), "damaged").expect("it is overwritten");
    assert!(!kernels[0].is_in(&cache));
    fs::remove_file(&filler).expect("removed");
    cache.prune(u64::MAX).expect("the quarantine is emptied");
    kernels[0].put(&cache);
    assert!(kernels[0].is_in(&cache));
}
