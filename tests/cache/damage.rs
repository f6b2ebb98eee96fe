//! Entries that are not what they were: a miss each, put away, and made anew.

use crate::support::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use tilewright::cache::{KernelCache, Origin};

const FILES: [&str; 3] = ["kernel.cu", "kernel.cubin", "meta.json"];

/// The files of an entry, to damage it again and again without storing it each time.
struct Pristine {
    kernel: Kernel,
    cache: KernelCache,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Pristine {
    fn new(cache: &KernelCache) -> Self {
        let kernel = kernel(1);
        kernel.put(cache);
        let folder = kernel.folder(cache);
        let files = FILES.map(|name| (name, fs::read(folder.join(name)).expect("a file"))).to_vec();
        Self { kernel, cache: cache.clone(), files }
    }

    /// An entry with these bytes in one file is a miss, and out of the way.
    fn is_refused_with(&self, name: &str, bytes: &[u8], why: &str) {
        let folder = self.kernel.folder(&self.cache);
        fs::create_dir_all(&folder).expect("a folder");
        for (file, pristine) in &self.files {
            fs::write(folder.join(file), if *file == name { bytes } else { pristine }).expect("a file");
        }
        assert!(!self.kernel.is_in(&self.cache), "{name}: {why}");
        assert!(!folder.exists(), "{name}: {why}: it is out of the way");
    }

    fn file(&self, name: &str) -> &[u8] {
        &self.files.iter().find(|(file, _)| *file == name).expect("a file").1
    }
}

fn is_rebuilt(kernel: &Kernel, cache: &KernelCache) {
    let compile = || Ok::<_, ()>(kernel.cubin.clone());
    let got = cache.get_or_compile(&kernel.key, &kernel.source, compile).expect("a cubin");
    assert_eq!(got, (kernel.cubin.clone(), Origin::Compiled));
    assert!(kernel.is_in(cache));
}

/// meta.json with a change and the checksum that belongs to it.
fn resealed(meta: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(meta.to_vec()).expect("text");
    assert!(text.contains(from), "{from} in {text}");
    let start = text.find("\"checksum\": \"").expect("a checksum") + "\"checksum\": \"".len();
    let unsealed = format!("{}{}", &text[..start], &text[start + 64..]).replace(from, to);
    let checksum = blake3::hash(unsealed.as_bytes()).to_hex();
    unsealed.replace("\"checksum\": \"\"", &format!("\"checksum\": \"{checksum}\"")).into_bytes()
}

#[test]
fn every_bit_counts() {
    let (_dir, cache) = cache();
    let pristine = Pristine::new(&cache);
    for (name, bytes) in &pristine.files {
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            pristine.is_refused_with(name, &flipped, &format!("bit {} of byte {at}", at % 8));
        }
    }
    assert!(quarantined(&cache) <= 32, "the quarantine does not grow for ever");
    is_rebuilt(&pristine.kernel, &cache);
}

#[test]
fn every_length_counts() {
    let (_dir, cache) = cache();
    let pristine = Pristine::new(&cache);
    for (name, bytes) in &pristine.files {
        for len in (0..bytes.len()).step_by(3) {
            pristine.is_refused_with(name, &bytes[..len], &format!("{len} bytes"));
        }
        pristine.is_refused_with(name, &[bytes, b"\n".as_slice()].concat(), "a byte more");
    }
    is_rebuilt(&pristine.kernel, &cache);
}

#[test]
fn what_meta_says_is_checked_even_when_it_is_sealed() {
    let (_dir, cache) = cache();
    let pristine = Pristine::new(&cache);
    let meta = pristine.file("meta.json");
    let refuse = |from: &str, to: &str| pristine.is_refused_with("meta.json", &resealed(meta, from, to), to);
    // A length that nothing may be allocated for.
    refuse("\"cubin_bytes\": 300", "\"cubin_bytes\": 18446744073709551615");
    refuse("\"cubin_bytes\": 300", "\"cubin_bytes\": 200000000");
    refuse("\"cubin_bytes\": 300", "\"cubin_bytes\": 299");
    refuse("\"name\": \"kernel1\"", "\"name\": \"kernel2\"");
    refuse("\"name\": \"kernel1\"", "\"name\": \"../../kernel1\"");
    refuse("\"arch\": \"sm_90a\"", "\"arch\": \"sm_80\"");
    refuse("--std=c++17", "--std=c++20");
    // Another version of Tilewright.
    refuse("\"schema\": 1", "\"schema\": 2");
    refuse("\"schema\": 1", "\"schema\": 0");
    pristine.is_refused_with("meta.json", "[".repeat(100_000).as_bytes(), "deep");
    pristine.is_refused_with("meta.json", &vec![b' '; 3 << 20], "large");
    is_rebuilt(&pristine.kernel, &cache);
}

#[test]
fn swapped_entries_are_noticed() {
    let (dir, cache) = cache();
    let (one, two) = (kernel(1), kernel(2));
    let swap = |a: &Path, b: &Path| {
        let aside = dir.path().join("aside");
        fs::rename(a, &aside)
            .and_then(|()| fs::rename(b, a))
            .and_then(|()| fs::rename(&aside, b))
            .expect("swapped");
    };
    for name in ["", "kernel.cubin", "kernel.cu", "meta.json"] {
        one.put(&cache);
        two.put(&cache);
        let (a, b) = (one.folder(&cache), two.folder(&cache));
        if name.is_empty() {
            swap(&a, &b)
        } else {
            swap(&a.join(name), &b.join(name))
        }
        assert!(!one.is_in(&cache) && !two.is_in(&cache), "{name}");
        is_rebuilt(&one, &cache);
        is_rebuilt(&two, &cache);
    }
    // The entry of one NVRTC as another's, and as another architecture's.
    let old = kernel_of(1, 300, (12, 9));
    fs::rename(one.folder(&cache), old.folder(&cache)).expect("renamed");
    assert!(!old.is_in(&cache));
    assert_eq!(cache.verify().broken, []);
    fs::rename(cache.root().join("v1/sm_90a"), cache.root().join("v1/sm_80")).expect("renamed");
    assert_eq!(cache.entries(), []);
    assert_eq!(cache.verify().broken.len(), 1, "kernel2 lies with the wrong architecture");
}

#[test]
fn things_that_are_no_entries_are_in_nobodys_way() {
    let (_dir, cache) = cache();
    let (one, two) = (kernel(1), kernel(2));
    let v1 = cache.root().join("v1");
    one.put(&cache);
    fs::write(v1.join("sm_90a/stray"), "file").expect("a file");
    fs::write(v1.join("stray"), "file").expect("a file");
    fs::create_dir_all(v1.join("sm_90a/empty-folder")).expect("a folder");
    fs::create_dir_all(v1.join("unknown/a/b")).expect("a folder");
    fs::create_dir_all(one.folder(&cache).join("more")).expect("a folder");
    fs::write(one.folder(&cache).join("more/file"), "more").expect("a file");
    assert!(one.is_in(&cache));
    assert_eq!(cache.entries().len(), 1);

    // In the place of an entry: a file, an empty folder, a folder without meta.json, folders for files.
    fs::write(two.folder(&cache), "file").expect("a file");
    is_rebuilt(&two, &cache);
    fs::remove_dir_all(two.folder(&cache)).expect("removed");
    fs::create_dir(two.folder(&cache)).expect("a folder");
    is_rebuilt(&two, &cache);
    for name in FILES {
        fs::remove_file(two.folder(&cache).join(name)).expect("removed");
        is_rebuilt(&two, &cache);
        fs::remove_file(two.folder(&cache).join(name)).expect("removed");
        fs::create_dir(two.folder(&cache).join(name)).expect("a folder");
        is_rebuilt(&two, &cache);
    }
    // In the place of folders that the cache needs.
    for name in ["locks", "quarantine", "sm_90a", "tune"] {
        let _ = fs::remove_dir_all(v1.join(name));
        fs::write(v1.join(name), "file").expect("a file");
    }
    is_rebuilt(&two, &cache);
    cache.write_record("device", "file", b"{}").expect("it is written");
    assert_eq!(cache.read_record("device", "file"), Some(b"{}".to_vec()));

    let report = cache.verify();
    assert_eq!((report.entries, report.records), (1, 1));
    assert_eq!(cache.verify().broken, [], "the first look put everything away: {report:?}");
}

#[test]
fn nothing_is_read_through_links_and_pipes() {
    let (dir, cache) = cache();
    let one = kernel(1);
    let outside = dir.path().join("outside");
    for name in FILES {
        one.put(&cache);
        let path = one.folder(&cache).join(name);
        fs::rename(&path, &outside).and_then(|()| symlink(&outside, &path)).expect("a link");
        assert!(!one.is_in(&cache), "a link to the very same {name}");
        assert!(outside.exists(), "what it points to is left alone");
        is_rebuilt(&one, &cache);

        let path = one.folder(&cache).join(name);
        fs::remove_file(&path).expect("removed");
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        is_rebuilt(&one, &cache);
    }
    let v1 = cache.root().join("v1");
    let elsewhere = dir.path().join("elsewhere");
    for path in [one.folder(&cache), v1.join("sm_90a")] {
        fs::rename(&path, &elsewhere).and_then(|()| symlink(&elsewhere, &path)).expect("a link");
        assert!(!one.is_in(&cache), "{}", path.display());
        is_rebuilt(&one, &cache);
        assert!(!path.is_symlink() && elsewhere.is_dir());
        fs::remove_dir_all(&elsewhere).expect("removed");
    }
    cache.write_record("device", "file", b"{}").expect("it is written");
    let path = v1.join("tune/device");
    fs::rename(&path, &elsewhere).and_then(|()| symlink(&elsewhere, &path)).expect("a link");
    assert_eq!(cache.read_record("device", "file"), None);
    cache.clear().unwrap();
    assert!(elsewhere.join("file.json").exists(), "clearing does not follow links");
}

#[test]
fn damaged_records_are_misses() {
    let (_dir, cache) = cache();
    let write = || cache.write_record("device", "file", b"{\"winner\": 1}").expect("it is written");
    write();
    cache.write_record("device", "other", b"{\"winner\": 2}").expect("it is written");
    let path = cache.root().join("v1/tune/device/file.json");
    let bytes = fs::read(&path).expect("a file");
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, flipped).expect("it is written");
        assert_eq!(cache.read_record("device", "file"), None, "byte {at}");
        fs::write(&path, &bytes[..at]).expect("it is written");
        assert_eq!(cache.read_record("device", "file"), None, "{at} bytes");
    }
    fs::copy(path.with_file_name("other.json"), &path).expect("a copy");
    assert_eq!(cache.read_record("device", "file"), None, "another record's");
    write();
    assert!(cache.read_record("device", "file").is_some());

    // A newer Tilewright's record is left to it.
    let newer = String::from_utf8(bytes).expect("text").replacen("\"schema\":1", "\"schema\":2", 1);
    fs::write(&path, &newer).expect("it is written");
    assert_eq!(cache.read_record("device", "file"), None);
    assert_eq!(cache.verify().other_schema, 1);
    assert_eq!(fs::read_to_string(&path).expect("it is there"), newer);
}
