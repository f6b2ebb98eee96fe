//! What a cache does when all is well.

use crate::support::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tilewright::cache::{CacheError, KernelCache, Origin};
use tilewright::compile::Cubin;

#[test]
fn what_is_put_is_found() {
    let (_dir, cache) = cache();
    let (one, two) = (kernel(1), kernel(2));
    assert!(!one.is_in(&cache));
    one.put(&cache);
    one.put(&cache);
    assert!(one.is_in(&cache) && !two.is_in(&cache));
    assert_eq!(cache.source(&one.key).as_deref(), Some(one.source.as_str()));
    let again = KernelCache::at(cache.root()).expect("a cache");
    assert!(one.is_in(&again));
    let entries = cache.entries();
    assert_eq!(entries.len(), 1);
    assert_eq!((&entries[0].key, entries[0].report), (&one.key, one.cubin.report));
    assert!(temporaries(&cache).is_empty() && quarantined(&cache) == 0);
}

#[test]
fn only_what_the_key_says_is_stored() {
    let (_dir, cache) = cache();
    let (one, two) = (kernel(1), kernel(2));
    let refused =
        |source: &str, cubin: &Cubin| cache.put(&one.key, source, cubin).expect_err("it is refused");
    assert!(matches!(refused(&two.source, &one.cubin), CacheError::Mismatch { .. }));
    assert!(matches!(refused(&one.source, &two.cubin), CacheError::Mismatch { .. }));
    let changed = |change: &dyn Fn(&mut Cubin)| {
        let mut other = one.cubin.clone();
        change(&mut other);
        other
    };
    let other = changed(&|cubin| cubin.arch = "sm_80".to_owned());
    assert!(refused(&one.source, &other).to_string().contains("sm_80"));
    let other = changed(&|cubin| cubin.nvrtc = (12, 9));
    assert!(matches!(refused(&one.source, &other), CacheError::Mismatch { .. }));
    // SAFETY: it never reaches a driver.
    let code = |bytes: usize, source: &str| unsafe {
        let (bytes, names) = (one.cubin.bytes()[..bytes].to_vec(), [one.key.name(), one.key.arch()]);
        Cubin::from_code(names, one.cubin.nvrtc, source, bytes, one.cubin.report)
    };
    assert!(matches!(refused(&one.source, &code(40, &one.source)), CacheError::NotWhole { bytes: 40, .. }));
    // Code of another source, whatever it calls itself.
    let foreign = refused(&one.source, &code(300, &two.source));
    assert!(matches!(foreign, CacheError::Mismatch { what: "code of a source of digest", .. }), "{foreign}");
    assert!(cache.entries().is_empty());
    // The caller still gets what was compiled.
    let got = cache.get_or_compile(&one.key, &two.source, || Ok::<_, ()>(one.cubin.clone()));
    assert_eq!(got, Ok((one.cubin.clone(), Origin::Compiled)));
}

#[test]
fn threads_share_one_compilation() {
    let (_dir, cache) = cache();
    let (one, count) = (kernel(1), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let compile = || {
                    count.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(50));
                    Ok::<_, ()>(one.cubin.clone())
                };
                let (cubin, _) = cache.get_or_compile(&one.key, &one.source, compile).expect("a cubin");
                assert_eq!(cubin, one.cubin);
            });
        }
    });
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let failed = cache.get_or_compile(&kernel(2).key, &kernel(2).source, || Err("it does not compile"));
    assert_eq!(failed, Err("it does not compile"));
}

#[test]
fn without_nvrtc_the_newest_version_counts() {
    let (_dir, cache) = cache();
    let versions = [(12, 9), (13, 1), (13, 0)].map(|nvrtc| kernel_of(1, 300, nvrtc));
    versions.iter().for_each(|kernel| kernel.put(&cache));
    let find_up_to = |source: &str, newest: i32| {
        cache.find("kernel1", "sm_90a", source, |(major, _)| major <= newest).map(|cubin| cubin.nvrtc)
    };
    let find = |source: &str| find_up_to(source, 13);
    assert_eq!(find(&versions[0].source), Some((13, 1)));
    assert_eq!(find("another source"), None);
    assert_eq!(cache.find("kernel1", "sm_80", &versions[0].source, |_| true), None);
    // A driver of CUDA 12 loads nothing newer.
    assert_eq!(find_up_to(&versions[0].source, 12), Some((12, 9)));
    assert_eq!(find_up_to(&versions[0].source, 11), None);
    // One that is damaged is passed over.
    std::fs::write(versions[1].folder(&cache).join("kernel.cubin"), "damaged").expect("it is written");
    assert_eq!(find(&versions[0].source), Some((13, 0)));
}

#[test]
fn records_are_kept_under_any_name() {
    let (_dir, cache) = cache();
    let names = [("NVIDIA H100 80GB HBM3", "forward"), ("NVIDIA H100 80GB HBM3", "../../x"), ("..", "")];
    for (i, (device, file)) in names.iter().enumerate() {
        assert_eq!(cache.read_record(device, file), None);
        cache.write_record(device, file, b"old").expect("it is written");
        let content = format!("{{\"winner\":{i}}}\n\0\n");
        cache.write_record(device, file, content.as_bytes()).expect("it is written again");
    }
    for (i, (device, file)) in names.iter().enumerate() {
        let content = format!("{{\"winner\":{i}}}\n\0\n");
        assert_eq!(cache.read_record(device, file), Some(content.into_bytes()));
    }
    let records = cache.records();
    assert_eq!(records.len(), names.len());
    assert!(records.iter().all(|record| record.path.starts_with(cache.root().join("v1/tune"))));
    assert!(names.iter().all(|name| records.iter().any(|r| (r.device.as_str(), r.file.as_str()) == *name)));
}

/// `cargo test --release --test cache -- --ignored --nocapture time_of_a_hit`
#[test]
#[ignore = "a measurement"]
fn time_of_a_hit() {
    let (_dir, cache) = cache();
    let kernel = kernel_of(1, 100_000, (13, 0));
    kernel.put(&cache);
    let mut times: Vec<Duration> = (0..1000)
        .map(|_| {
            let start = Instant::now();
            assert!(cache.get(&kernel.key).is_some());
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("a hit of a 100 kB cubin: median {:?}, slowest of 1000 {:?}", times[500], times[999]);
}
