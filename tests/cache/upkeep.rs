//! Size, age and clocks.

use crate::support::*;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tilewright::cache::KernelCache;

const HOUR: Duration = Duration::from_secs(3600);

fn set_used(cache: &KernelCache, kernel: &Kernel, time: SystemTime) {
    set_time(&kernel.folder(cache).join("used"), time);
}

fn used(cache: &KernelCache, kernel: &Kernel) -> SystemTime {
    let entries = cache.entries();
    let entry = entries.iter().find(|entry| entry.key == kernel.key).expect("an entry");
    entry.used.expect("a stamp")
}

#[test]
fn what_was_not_used_goes_first() {
    let (_dir, cache) = cache();
    let kernels: Vec<Kernel> = (0..5).map(|number| kernel_of(number, 50_000, (13, 0))).collect();
    let now = SystemTime::now();
    for (kernel, hours) in kernels.iter().zip([5, 9, 3, 7, 1]) {
        kernel.put(&cache);
        set_used(&cache, kernel, now - hours * HOUR);
    }
    assert_eq!(cache.prune(u64::MAX).unwrap().removed, 0);
    // Being read counts as use.
    assert!(kernels[1].is_in(&cache));
    let report = cache.prune(110_000).unwrap();
    assert_eq!((report.removed, report.kept), (3, 2));
    assert!(report.freed_bytes >= 150_000 && report.kept_bytes <= 110_000);
    let left: Vec<bool> = kernels.iter().map(|kernel| kernel.is_in(&cache)).collect();
    assert_eq!(left, [false, true, false, false, true]);
    assert_eq!(cache.prune(0).unwrap().kept, 0);
    assert!(temporaries(&cache).is_empty());
}

#[test]
fn a_limit_is_kept() {
    let (_dir, cache) = cache();
    let cache = cache.with_limit(400_000);
    for number in 0..30 {
        let kernel = kernel_of(number, 50_000, (13, 0));
        kernel.put(&cache);
        set_used(&cache, &kernel, SystemTime::now() - (30 - number as u32) * Duration::from_secs(60));
    }
    let entries = cache.entries();
    let total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    assert!((200_000..=500_000).contains(&total), "{total} bytes");
    assert!(kernel_of(29, 50_000, (13, 0)).is_in(&cache), "the latest stay");
    let report = cache.clear().unwrap();
    assert_eq!(report.entries, entries.len());
    assert!(report.freed_bytes >= total);
    assert!(cache.entries().is_empty());
}

#[test]
fn clocks_decide_nothing() {
    let (_dir, cache) = cache();
    let (future, zero, normal) = (kernel(1), kernel(2), kernel(3));
    for kernel in [&future, &zero, &normal] {
        kernel.put(&cache);
    }
    let far = SystemTime::now() + 1000 * 24 * HOUR;
    set_used(&cache, &future, far);
    set_used(&cache, &zero, UNIX_EPOCH);
    set_used(&cache, &normal, SystemTime::now() - Duration::from_secs(600));
    assert_eq!(cache.entries().len(), 3);
    assert_eq!(cache.verify().broken, []);
    // A stamp of the future does not keep an entry for ever: it is corrected by the next use.
    assert!(future.is_in(&cache) && zero.is_in(&cache) && normal.is_in(&cache));
    assert!(used(&cache, &future) < far - HOUR);
    assert!(used(&cache, &zero) > UNIX_EPOCH + HOUR);
    // A recent one is not written again.
    let age = SystemTime::now().duration_since(used(&cache, &normal)).expect("it lies in the past");
    assert!(age >= Duration::from_secs(600));

    // Sweeping with stamps from the future and from 1970 harms nothing.
    for time in [far, UNIX_EPOCH] {
        set_time(&cache.root().join("v1/swept"), time);
        let again = KernelCache::at(cache.root()).expect("a cache");
        assert!(future.is_in(&again) && zero.is_in(&again));
    }
    set_used(&cache, &future, far);
    set_used(&cache, &zero, UNIX_EPOCH);
    let size = cache.entries()[0].bytes;
    assert_eq!(cache.prune(2 * size + size / 2).unwrap().removed, 1);
    assert!(!zero.is_in(&cache) && future.is_in(&cache) && normal.is_in(&cache));
    // Removed stamps are no trouble either.
    std::fs::remove_file(normal.folder(&cache).join("used")).expect("removed");
    assert!(normal.is_in(&cache));
    assert!(normal.folder(&cache).join("used").exists());
}

#[test]
fn what_is_removed_meanwhile_is_a_miss_and_nothing_else() {
    let (_dir, cache) = cache();
    let kernels: Vec<Kernel> = (0..3).map(|number| kernel_of(number, 50_000, (13, 0))).collect();
    let end = std::time::Instant::now() + Duration::from_millis(400);
    let until_the_end = |work: &dyn Fn()| {
        while std::time::Instant::now() < end {
            work();
        }
    };
    std::thread::scope(|scope| {
        // `is_in` compares what it finds.
        for _ in 0..2 {
            scope.spawn(|| {
                until_the_end(&|| assert!(kernels.iter().filter(|kernel| kernel.is_in(&cache)).count() <= 3))
            });
        }
        scope.spawn(|| {
            until_the_end(&|| {
                cache.prune(60_000).expect("what is gone is no failure");
            })
        });
        // A folder may be removed as it is written into: that is an error, and no more.
        scope.spawn(|| {
            until_the_end(&|| {
                cache.clear().expect("what is gone is no failure");
            })
        });
        until_the_end(&|| {
            for kernel in &kernels {
                let got =
                    cache.get_or_compile(&kernel.key, &kernel.source, || Ok::<_, ()>(kernel.cubin.clone()));
                assert_eq!(got.expect("a cubin").0, kernel.cubin);
            }
        });
    });
    kernels.iter().for_each(|kernel| kernel.put(&cache));
    assert!(kernels.iter().all(|kernel| kernel.is_in(&cache)));
    assert_eq!(cache.verify().broken, []);
}
