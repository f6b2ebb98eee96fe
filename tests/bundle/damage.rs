//! Bundles that suffered on the way, and imports that do not come to their end.

use super::support::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;
use tilewright::bundle::{BundleError, Contents, Refusal, export};
use tilewright::cache::{CacheError, KernelCache};

#[test]
fn a_truncated_bundle_is_refused() {
    let (_dir, path) = bundle();
    let bytes = fs::read(path).unwrap();
    let mut lengths: Vec<usize> = (0..bytes.len()).step_by(bytes.len() / 100).collect();
    lengths.extend([1, 2, 3, 4, 5, 6, 7, bytes.len() - 5, bytes.len() - 4, bytes.len() - 1]);
    for len in lengths {
        let refusal = refusal(&bytes[..len]);
        let expected = matches!(refusal, Refusal::Truncated | Refusal::Damaged(_));
        assert!(expected, "{len} of {}: {refusal}", bytes.len());
    }
}

#[test]
fn a_flipped_bit_never_gives_another_kernel() {
    let (_dir, path) = bundle();
    let good = fs::read(path).unwrap();
    let mut imported = 0;
    // Every bit of the beginning and the end, where zstd's own fields are, and a sample of the rest.
    let sample = (0..good.len()).step_by(41).map(|byte| (byte, byte % 8));
    let edges = (0..16).chain(good.len() - 8..good.len()).flat_map(|byte| (0..8).map(move |bit| (byte, bit)));
    for (byte, bit) in edges.chain(sample) {
        let mut bytes = good.clone();
        bytes[byte] ^= 1 << bit;
        if let Ok((_dir, cache)) = try_import(&bytes) {
            imported += 1;
            assert!((0..3).all(|number| kernel(number).is_in(&cache)), "byte {byte}, bit {bit}");
            let record = record("sm_90a", &[("a", 2.0), ("b", 1.0)]);
            assert_eq!(read_record(&cache, &record), Some(record.to_json()));
        }
    }
    // zstd has a few bits without a meaning.
    assert!(imported < 16, "{imported}");
}

#[test]
fn rubbish_is_refused() {
    for bytes in [&b""[..], b"\x28\xb5\x2f\xfd", b"PK\x03\x04", &[0; 4096], &[0xff; 4096]] {
        assert!(matches!(refusal(bytes), Refusal::Truncated | Refusal::Damaged(_)));
    }
    assert!(matches!(refusal(&compress(b"")), Refusal::Truncated));
    assert!(matches!(refusal(&compress(&[1; 4096])), Refusal::Damaged(_)));
    // A plain tar archive.
    assert!(matches!(refusal(&archive(&listed(Vec::new()))), Refusal::Damaged(_)));
}

#[test]
fn a_killed_import_leaves_the_cache_consistent() {
    const KERNELS: usize = 60;
    let (dir, cache) = cache();
    let kernels: Vec<Kernel> = (0..KERNELS).map(kernel).collect();
    kernels.iter().for_each(|kernel| kernel.put(&cache));
    let record = record("sm_90a", &[("a", 2.0), ("b", 1.0)]);
    write_record(&cache, &record);
    let path = dir.path().join("bundle.tar.zst");
    export(&cache, &Contents::Everything, &path).unwrap();

    let (mut partial, mut complete) = (0, 0);
    for round in 0..40_u64 {
        let root = dir.path().join(format!("target{round}"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_tilewright"))
            .arg("import")
            .arg(&path)
            .env("TILEWRIGHT_CACHE", &root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Later and later, until an import is done before.
        std::thread::sleep(Duration::from_millis(4 * round));
        let _ = child.kill();
        child.wait().unwrap();

        let target = KernelCache::at(&root).unwrap();
        let there = kernels.iter().filter(|kernel| kernel.is_in(&target)).count();
        let report = target.verify();
        assert!(report.broken.is_empty(), "{:?}", report.broken);
        assert_eq!(report.entries, there);
        let recorded = read_record(&target, &record);
        assert!(recorded.is_none() || (there == KERNELS && recorded == Some(record.to_json())));
        partial += usize::from(there > 0 && recorded.is_none());
        complete += usize::from(recorded.is_some());

        let rest = import(&target, &path).unwrap();
        assert_eq!((rest.present.len(), rest.added.len()), (there, KERNELS - there));
        assert!(kernels.iter().all(|kernel| kernel.is_in(&target)));
        if complete == 3 {
            break;
        }
    }
    eprintln!("{partial} imports were killed between two kernels");
}

#[test]
fn a_cache_that_stops_taking_keeps_what_it_has() {
    let (dir, cache) = cache();
    let (first, second) = (kernel_of("pool", "sm_80", 400), kernel_of("pool", "sm_90a", 400));
    first.put(&cache);
    second.put(&cache);
    let path = dir.path().join("bundle");
    export(&cache, &Contents::Everything, &path).unwrap();

    let (_to, target) = super::support::cache();
    let closed = target.root().join("v1/sm_90a");
    fs::create_dir(&closed).unwrap();
    let mode = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
    // Others may write to the second architecture's folder: nothing is stored there.
    mode(0o777);
    let error = import(&target, &path).unwrap_err();
    assert!(matches!(error, BundleError::Cache(CacheError::Writable { .. })), "{error}");
    assert!(first.is_in(&target) && !second.is_in(&target));
    assert!(target.verify().broken.is_empty());
    mode(0o700);
    let report = import(&target, &path).unwrap();
    assert_eq!((report.present, report.added), (vec![first.key], vec![second.key]));
}
