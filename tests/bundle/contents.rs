//! What goes in comes out.

use super::support::*;
use std::fs;
use std::path::Path;
use std::process::Command;
use tilewright::bundle::{BundleError, Contents, Refusal, export};
use tilewright::cache::KernelCache;

#[test]
fn a_round_trip_brings_everything() {
    let (from, cache) = cache();
    let kernels: Vec<Kernel> = (0..5).map(kernel).collect();
    kernels.iter().for_each(|kernel| kernel.put(&cache));
    let record = record("sm_90a", &[("a", 2.0), ("b", 1.0)]);
    write_record(&cache, &record);
    let path = from.path().join("bundle.tar.zst");
    let report = export(&cache, &Contents::Everything, &path).unwrap();
    assert_eq!((report.kernels.len(), report.records.len(), report.skipped.len()), (5, 1, 0));
    assert_eq!(report.bytes, fs::metadata(&path).unwrap().len());
    assert_eq!(report.blake3, blake3::hash(&fs::read(&path).unwrap()).to_hex().as_str());
    assert_eq!(files_of(&path)[0].path, "manifest.json");
    assert_eq!(files_of(&path).len(), 1 + 5 * 3 + 1);

    let (_to, target) = super::support::cache();
    let report = import(&target, &path).unwrap();
    assert_eq!((report.added.len(), report.added_records.len()), (5, 1));
    assert!(report.present.is_empty() && report.refused.is_empty());
    assert!(kernels.iter().all(|kernel| kernel.is_in(&target)));
    assert_eq!(target.source(&kernels[0].key).as_deref(), Some(kernels[0].source.as_str()));
    assert_eq!(read_record(&target, &record), Some(record.to_json()));
    assert!(target.verify().broken.is_empty());
    // The folder it was unpacked in is gone.
    assert!(leftovers(&target).iter().all(|path| path.ends_with("sm_90a") || path.ends_with("tune")));

    let again = import(&target, &path).unwrap();
    assert_eq!((again.present.len(), again.present_records.len()), (5, 1));
    assert!(again.added.is_empty() && again.added_records.is_empty() && again.replaced_records.is_empty());
}

#[test]
fn the_same_content_gives_the_same_bytes() {
    let (dir, cache) = cache();
    for number in [4, 1, 3, 0, 2] {
        kernel(number).put(&cache);
    }
    write_record(&cache, &record("sm_90a", &[("a", 2.0)]));
    let exported = |cache: &KernelCache, name: &str| {
        let path = dir.path().join(name);
        export(cache, &Contents::Everything, &path).unwrap();
        fs::read(path).unwrap()
    };
    let first = exported(&cache, "first");
    // What was imported is exported as it came, and when and how long it was compiled is no part of it.
    let imported = KernelCache::at(&dir.path().join("imported")).unwrap();
    import(&imported, &dir.path().join("first")).unwrap();
    assert_eq!(exported(&imported, "again"), first);
    let slow = KernelCache::at(&dir.path().join("slow")).unwrap();
    for number in 0..5 {
        let mut kernel = kernel(number);
        kernel.cubin.compile_time *= 7;
        kernel.put(&slow);
    }
    write_record(&slow, &record("sm_90a", &[("a", 2.0)]));
    assert_eq!(exported(&slow, "third"), first);
    // A copy on another day, in which the files come in another order.
    let copy = dir.path().join("copy");
    assert!(Command::new("cp").arg("-r").args([cache.root(), &copy]).status().unwrap().success());
    let copy = KernelCache::at(&copy).unwrap();
    cache.get(&kernel(3).key);
    assert_eq!(exported(&copy, "second"), first);
    assert_eq!(exported(&cache, "first"), first);
}

#[test]
fn a_bundle_is_chosen_from() {
    let (dir, cache) = cache();
    let ampere = kernel_of("pool", "sm_80", 400);
    let hopper = [kernel_of("pool", "sm_90a", 400), kernel_of("forward", "sm_90a", 400)];
    [&ampere, &hopper[0], &hopper[1]].into_iter().for_each(|kernel| kernel.put(&cache));
    let records = ["sm_80", "sm_90a"].map(|arch| record(arch, &[("a", 2.0)]));
    records.iter().for_each(|record| write_record(&cache, record));
    let path = dir.path().join("bundle");
    let exported = |contents: Contents<'_>| export(&cache, &contents, &path);

    let report = exported(Contents::Archs(&["sm_90a"])).unwrap();
    assert!(report.kernels.len() == 2 && report.kernels.iter().all(|key| key.arch() == "sm_90a"));
    assert_eq!(report.records.len(), 1);
    assert_eq!(report.records[0].device, name_of(&records[1]).0);

    let kernels = [hopper[1].key.clone(), kernel(7).key];
    let names = [name_of(&records[0]), ("nowhere".to_owned(), "nothing".to_owned())];
    let report = exported(Contents::These { kernels: &kernels, records: &names }).unwrap();
    assert_eq!((report.kernels, report.records.len()), (kernels[..1].to_vec(), 1));
    assert_eq!(report.skipped.len(), 2);
    let (_to, target) = super::support::cache();
    import(&target, &path).unwrap();
    assert!(hopper[1].is_in(&target) && !ampere.is_in(&target));

    let before = fs::read(&path).unwrap();
    assert!(matches!(exported(Contents::Archs(&["sm_120a"])), Err(BundleError::Empty { .. })));
    let nowhere = dir.path().join("nowhere/bundle");
    assert!(matches!(export(&cache, &Contents::Everything, &nowhere), Err(BundleError::Write { .. })));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn damaged_entries_stay_at_home() {
    let (dir, cache) = cache();
    let kernels = [kernel(0), kernel(1)];
    kernels.iter().for_each(|kernel| kernel.put(&cache));
    let entry = cache.entries().remove(0);
    fs::write(entry.path.join("kernel.cubin"), b"\x7fELF").unwrap();
    let report = export(&cache, &Contents::Everything, &dir.path().join("bundle")).unwrap();
    assert_eq!((report.kernels.len(), report.skipped.len()), (1, 1));
    assert!(report.skipped[0].0.contains(entry.key.name()), "{:?}", report.skipped);
}

#[test]
fn what_is_there_stays_and_the_bundles_record_wins() {
    let (_dir, path) = bundle();
    let (_to, target) = cache();
    kernel(1).put(&target);
    let stamp = |cache: &KernelCache| {
        let entry = cache.entries().into_iter().find(|entry| entry.key == kernel(1).key).unwrap();
        fs::metadata(entry.path.join("meta.json")).unwrap().modified().unwrap()
    };
    let before = stamp(&target);
    let (old, new) = (record("sm_90a", &[("a", 1.0)]), record("sm_90a", &[("a", 2.0), ("b", 1.0)]));
    write_record(&target, &old);
    let report = import(&target, &path).unwrap();
    assert_eq!((report.added.len(), report.present), (2, vec![kernel(1).key]));
    assert_eq!((report.added_records.len(), report.replaced_records.len()), (0, 1));
    assert_eq!(stamp(&target), before);
    assert_eq!(read_record(&target, &new), Some(new.to_json()));
}

#[test]
fn long_names_survive() {
    let (dir, cache) = cache();
    let long = kernel_of(&"k".repeat(140), "sm_90a", 400);
    let odd = kernel_of("a kernel/../of an odd name", "sm_90a", 400);
    [&long, &odd].into_iter().for_each(|kernel| kernel.put(&cache));
    let path = dir.path().join("bundle");
    export(&cache, &Contents::Everything, &path).unwrap();
    let (_to, target) = super::support::cache();
    assert_eq!(import(&target, &path).unwrap().added.len(), 2);
    assert!(long.is_in(&target) && odd.is_in(&target));
}

#[test]
fn no_bundle_is_no_panic() {
    let (dir, cache) = cache();
    let missing = import(&cache, &dir.path().join("nothing")).unwrap_err();
    assert!(matches!(missing, BundleError::Open { .. }), "{missing}");
    let folder = import(&cache, dir.path()).unwrap_err();
    assert!(matches!(folder, BundleError::Open { .. }), "{folder}");
    // Read like a pipe, and refused at once although it never ends.
    let device = import(&cache, Path::new("/dev/zero")).unwrap_err();
    assert!(matches!(device, BundleError::Refused { refusal: Refusal::Damaged(_), .. }), "{device}");
}

/// Kernels of some ten thousand bytes each.
fn large(number: usize) -> Kernel {
    kernel_of(&format!("large{number}"), "sm_90a", 10_000)
}

/// A bundle of the first `count` of them.
fn bundle_of(count: usize) -> (tempfile::TempDir, std::path::PathBuf) {
    let (dir, cache) = cache();
    (0..count).for_each(|number| large(number).put(&cache));
    let path = dir.path().join("bundle");
    export(&cache, &Contents::Everything, &path).unwrap();
    (dir, path)
}

#[test]
fn an_import_is_kept_whole_or_refused() {
    let (_dir, path) = bundle_of(4);
    for limit in [0, 10_000, 35_000] {
        let (_to, target) = cache();
        let target = target.with_limit(limit);
        kernel(9).put(&target.clone().with_limit(u64::MAX));
        let error = import(&target, &path).unwrap_err();
        assert!(
            matches!(&error, BundleError::OverLimit { limit: found, needed, .. } if *found == limit && *needed > 40_000)
        );
        let said = error.to_string();
        assert!(said.contains("TILEWRIGHT_CACHE_LIMIT") && said.contains(&limit.to_string()), "{said}");
        assert!(kernel(9).is_in(&target) && target.entries().len() == 1, "the cache is as it was");
    }
    // There is room when what was there before goes; what the bundle has in common with it stays.
    for limit in [45_500, 48_000, 60_000, 1_000_000] {
        let (_to, target) = cache();
        let target = target.with_limit(limit);
        let all = target.clone().with_limit(u64::MAX);
        for number in [2, 10, 11, 12] {
            large(number).put(&all);
        }
        // Used last, and longest ago.
        let used = |number: usize, hours: u64| {
            let entry = all.entries().into_iter().find(|entry| entry.key == large(number).key).unwrap();
            let file = fs::File::options().write(true).open(entry.path.join("used")).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 60))
                .unwrap();
        };
        [(2, 50), (10, 40), (11, 30), (12, 20)]
            .into_iter()
            .for_each(|(number, minutes)| used(number, minutes));
        let report = import(&target, &path).unwrap();
        assert_eq!((report.added.len(), report.present.len()), (3, 1));
        assert!((0..4).all(|number| large(number).is_in(&target)), "{limit}: what was imported is there");
        let total: u64 = target.entries().iter().map(|entry| entry.bytes).sum();
        assert!(total <= limit, "{total} of {limit}");
        assert_eq!(target.entries().len() + report.removed, 7, "{limit}");
        assert_eq!(report.removed == 0, limit == 1_000_000);
    }
}
