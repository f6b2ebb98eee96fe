//! Fake kernels and records, and archives made by hand.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tar::{EntryType, Header};
use tempfile::TempDir;
use tilewright::bundle::{BundleError, Contents, ImportReport, Refusal, export};
use tilewright::cache::{CubinKey, KernelCache};
use tilewright::codegen::{Family, Schedule};
use tilewright::compile::{Cubin, OPTIONS, PtxasReport};
use tilewright::tune::*;

/// A kernel that was never compiled.
pub struct Kernel {
    pub key: CubinKey,
    pub source: String,
    pub cubin: Cubin,
}

pub fn kernel(number: usize) -> Kernel {
    kernel_of(&format!("kernel{number}"), "sm_90a", 3000 + number)
}

pub fn kernel_of(name: &str, arch: &str, bytes: usize) -> Kernel {
    let source = format!("extern \"C\" __global__ void {name}() {{}}\n");
    // An ELF header without tables.
    let mut elf: Vec<u8> = (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    elf[..64].fill(0);
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let report = PtxasReport { registers: 128, ..PtxasReport::default() };
    // SAFETY: it never reaches a driver.
    let mut cubin = unsafe { Cubin::from_code([name, arch], (13, 0), &source, elf, report) };
    cubin.compile_time = Duration::from_millis(123);
    cubin.warnings = vec!["an unused variable".to_owned()];
    Kernel { key: CubinKey::new(name, arch, &source, OPTIONS, (13, 0)), source, cubin }
}

impl Kernel {
    pub fn put(&self, cache: &KernelCache) {
        cache.put(&self.key, &self.source, &self.cubin).expect("it is stored");
    }

    /// Whether the cache has it; never another one.
    pub fn is_in(&self, cache: &KernelCache) -> bool {
        let found = cache.get(&self.key);
        if let Some(found) = &found {
            // A bundle does not say how long the compilation took.
            assert!(found.compile_time.is_zero() || found.compile_time == self.cubin.compile_time);
            let mut found = found.clone();
            found.compile_time = self.cubin.compile_time;
            assert_eq!(found, self.cubin, "never a wrong kernel");
        }
        found.is_some()
    }
}

struct Times<'a>(&'a [(&'a str, f64)]);

impl Bench for Times<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn name(&self, i: usize) -> &str {
        self.0[i].0
    }

    fn check(&mut self, _: usize) -> Result<(), String> {
        Ok(())
    }

    fn time_us(&mut self, i: usize, _: u32) -> Result<f64, String> {
        Ok(self.0[i].1)
    }
}

/// The record of a race with these times.
pub fn record(arch: &str, times: &[(&str, f64)]) -> TuneRecord {
    let workload = Workload { batch: 1, heads: 12, seq_q: 32_760, seq_kv: 32_760, density: 0.05 };
    let device = DeviceKey { arch: arch.into(), name: "NVIDIA H200".into(), sm_count: 132, memory_clock: 32 };
    let key = TuneKey { spec: "forward-0123456789abcdef".into(), device, bucket: Bucket::of(&workload) };
    let contender = |(name, _): &(&str, f64)| Contender {
        fingerprint: (*name).to_owned(),
        schedule: Schedule { family: Family::Sm80, values: vec![("WARPS".into(), 4)] },
        registers: Some(128),
        smem_bytes: 1024,
        blocks_per_sm: Some(2),
        compile_ms: Some(100.0),
    };
    let race = race(&mut Times(times), &RaceSettings::default(), &mut |_| {}).expect("a winner");
    TuneRecord::new(key, times.iter().map(contender).collect(), Vec::new(), &race).expect("a record")
}

/// The name of a record in the cache.
pub fn name_of(record: &TuneRecord) -> (String, String) {
    (record.key().device.folder_name(), record.key().file_name())
}

pub fn write_record(cache: &KernelCache, record: &TuneRecord) {
    let (device, file) = name_of(record);
    cache.write_record(&device, &file, &record.to_json()).expect("it is written");
}

pub fn read_record(cache: &KernelCache, record: &TuneRecord) -> Option<Vec<u8>> {
    let (device, file) = name_of(record);
    cache.read_record(&device, &file)
}

/// An empty cache, as long as the folder lives.
pub fn cache() -> (TempDir, KernelCache) {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = KernelCache::at(&dir.path().join("cache")).expect("a cache");
    (dir, cache)
}

/// A bundle of three kernels and a record.
pub fn bundle() -> (TempDir, PathBuf) {
    let (dir, cache) = cache();
    (0..3).for_each(|number| kernel(number).put(&cache));
    write_record(&cache, &record("sm_90a", &[("a", 2.0), ("b", 1.0)]));
    let path = dir.path().join("bundle.tar.zst");
    export(&cache, &Contents::Everything, &path).expect("it is exported");
    (dir, path)
}

/// A file of an archive, with everything that a header can say.
#[derive(Clone, Debug)]
pub struct File {
    pub path: String,
    pub bytes: Vec<u8>,
    pub kind: EntryType,
    pub link: Option<&'static str>,
}

impl File {
    pub fn new(path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        File { path: path.to_owned(), bytes: bytes.into(), kind: EntryType::Regular, link: None }
    }
}

/// The files of a bundle, the manifest first.
pub fn files_of(bundle: &Path) -> Vec<File> {
    let archive = zstd::decode_all(std::fs::File::open(bundle).expect("a file")).expect("a zstd file");
    let mut archive = tar::Archive::new(&archive[..]);
    let file = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").to_str().expect("UTF-8").to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("its content");
        File::new(&path, bytes)
    };
    archive.entries().expect("entries").map(file).collect()
}

/// The bytes of a header whose path no careful writer would allow.
pub fn header(file: &File) -> Header {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..file.path.len().min(100)]
        .copy_from_slice(&file.path.as_bytes()[..file.path.len().min(100)]);
    header.set_entry_type(file.kind);
    if let Some(link) = file.link {
        header.set_link_name(link).expect("a short link");
    }
    header.set_size(file.bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

/// An archive of these files as they are.
pub fn archive(files: &[File]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        archive.append(&header(file), &file.bytes[..]).expect("memory takes it");
    }
    archive.into_inner().expect("memory takes it")
}

pub fn compress(archive: &[u8]) -> Vec<u8> {
    zstd::encode_all(archive, 3).expect("memory takes it")
}

/// The manifest that lists these files.
pub fn manifest(files: &[File]) -> File {
    let list: Vec<_> = files
        .iter()
        .map(|file| {
            let blake3 = blake3::hash(&file.bytes).to_hex().to_string();
            serde_json::json!({ "path": file.path, "size": file.bytes.len(), "blake3": blake3 })
        })
        .collect();
    let json = serde_json::json!({ "schema": 1, "created_by": "a test", "files": list });
    File::new("manifest.json", json.to_string())
}

/// The same files with a manifest that lists them.
pub fn listed(files: Vec<File>) -> Vec<File> {
    [vec![manifest(&files)], files].concat()
}

/// Imports a bundle of the test's own.
pub fn import(cache: &KernelCache, from: &Path) -> Result<ImportReport, BundleError> {
    // SAFETY: the tests made the bundle, and run nothing that it brings.
    unsafe { tilewright::bundle::import(cache, from) }
}

/// Imports some bytes into an empty cache. What is refused leaves nothing behind.
pub fn try_import(bytes: &[u8]) -> Result<(TempDir, KernelCache), Refusal> {
    let (dir, cache) = cache();
    let path = dir.path().join("bundle.tar.zst");
    std::fs::File::create(&path).and_then(|mut file| file.write_all(bytes)).expect("a file");
    match import(&cache, &path) {
        Ok(_) => Ok((dir, cache)),
        Err(BundleError::Refused { refusal, .. }) => {
            assert!(cache.entries().is_empty() && cache.records().is_empty());
            assert!(leftovers(&cache).is_empty(), "{:?}", leftovers(&cache));
            Err(refusal)
        }
        Err(error) => panic!("{error}"),
    }
}

/// Everything below the cache's folder but the stamp of its last sweep.
pub fn leftovers(cache: &KernelCache) -> Vec<PathBuf> {
    let v1 = std::fs::read_dir(cache.root().join("v1")).expect("the layout");
    let outside = std::fs::read_dir(cache.root()).expect("the root");
    let paths = v1.chain(outside).map(|entry| entry.expect("an entry").path());
    paths.filter(|path| !path.ends_with("swept") && !path.ends_with("v1")).collect()
}

/// How an import of these bytes is refused.
pub fn refusal(bytes: &[u8]) -> Refusal {
    match try_import(bytes) {
        Ok(_) => panic!("it was imported"),
        Err(refusal) => refusal,
    }
}
