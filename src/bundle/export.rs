//! From a cache to a bundle.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

use super::error::BundleError;
use super::manifest::{Listed, Manifest};
use super::place::MANIFEST;
use super::{LARGEST, MOST_FILES};
use crate::cache::transfer::PARTS;
use crate::cache::{CubinKey, KernelCache, RecordId};
use crate::output::Output;
use crate::tune::TuneRecord;

/// zstd's effort: a hundred kernels take a second.
const LEVEL: i32 = 12;

/// What of a cache goes into a bundle.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Contents<'a> {
    /// Every compiled kernel and every tuning record.
    Everything,
    /// Those of some architectures, such as `sm_90a`.
    Archs(&'a [&'a str]),
    /// These.
    These {
        /// The compiled kernels.
        kernels: &'a [CubinKey],
        /// The records, as device and file: what [`KernelCache::write_record`] was told.
        records: &'a [(String, String)],
    },
}

impl Contents<'_> {
    fn has_kernel(&self, key: &CubinKey) -> bool {
        match self {
            Contents::Everything => true,
            Contents::Archs(archs) => archs.contains(&key.arch()),
            Contents::These { kernels, .. } => kernels.contains(key),
        }
    }

    fn has_record(&self, id: &RecordId, record: &TuneRecord) -> bool {
        match self {
            Contents::Everything => true,
            Contents::Archs(archs) => archs.contains(&record.key().device.arch.as_str()),
            Contents::These { records, .. } => {
                records.iter().any(|(device, file)| *device == id.device && *file == id.file)
            }
        }
    }
}

/// A bundle that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportReport {
    /// The file.
    pub path: PathBuf,
    /// The compiled kernels in it.
    pub kernels: Vec<CubinKey>,
    /// The tuning records in it.
    pub records: Vec<RecordId>,
    /// The file's size.
    pub bytes: u64,
    /// What it unpacks to.
    pub content_bytes: u64,
    /// The blake3 digest of the file.
    pub blake3: String,
    /// What was asked for and left out, with the reason: it is damaged or was removed meanwhile.
    pub skipped: Vec<(String, String)>,
}

/// Writes what is in a cache to one file, as [`Output`] does: it appears whole or not at all, and replaces a file that had
/// its name.
///
/// # Errors
/// [`BundleError::Empty`] when there is nothing to write, [`BundleError::TooMuch`] when no import would take it,
/// [`BundleError::Write`] when the file cannot be written.
pub fn export(cache: &KernelCache, contents: &Contents<'_>, to: &Path) -> Result<ExportReport, BundleError> {
    let open = || Output::open(to).map_err(|source| BundleError::Write { path: to.to_owned(), source });
    export_with(cache, contents, open)
}

/// The same to a place that is open already, such as standard output.
///
/// # Errors
/// As [`export`].
pub fn export_to(
    cache: &KernelCache,
    contents: &Contents<'_>,
    to: Output,
) -> Result<ExportReport, BundleError> {
    export_with(cache, contents, || Ok(to))
}

fn export_with(
    cache: &KernelCache,
    contents: &Contents<'_>,
    open: impl FnOnce() -> Result<Output, BundleError>,
) -> Result<ExportReport, BundleError> {
    let mut found = Found::default();
    found.kernels(cache, contents)?;
    found.records(cache, contents)?;
    let Found { files, kernels, records, skipped, bytes: content_bytes } = found;
    if files.is_empty() {
        return Err(BundleError::Empty { cache: cache.root().to_owned() });
    }
    let output = open()?;
    let path = output.path().to_owned();
    let write = || -> io::Result<(u64, String)> {
        let bundle = pack(&files)?;
        output.write(&bundle)?;
        Ok((bundle.len() as u64, blake3::hash(&bundle).to_hex().to_string()))
    };
    let (bytes, blake3) = write().map_err(|source| BundleError::Write { path: path.clone(), source })?;
    tracing::debug!(path = %path.display(), bytes, kernels = kernels.len(), records = records.len(), "exported");
    Ok(ExportReport { path, kernels, records, bytes, content_bytes, blake3, skipped })
}

/// What was found to export.
#[derive(Default)]
struct Found {
    /// By path, which is the order in the bundle.
    files: BTreeMap<String, Vec<u8>>,
    kernels: Vec<CubinKey>,
    records: Vec<RecordId>,
    skipped: Vec<(String, String)>,
    bytes: u64,
}

impl Found {
    fn kernels(&mut self, cache: &KernelCache, contents: &Contents<'_>) -> Result<(), BundleError> {
        let mut keys: Vec<CubinKey> = cache.entries().into_iter().map(|entry| entry.key).collect();
        if let Contents::These { kernels, .. } = contents {
            keys = kernels.to_vec();
        }
        for key in keys.into_iter().filter(|key| contents.has_kernel(key)) {
            match cache.parts(&key) {
                Ok((folder, parts)) => {
                    for (name, bytes) in PARTS.iter().zip(parts) {
                        self.add(format!("{folder}/{name}"), bytes)?;
                    }
                    if !self.kernels.contains(&key) {
                        self.kernels.push(key);
                    }
                }
                Err(why) => self.skipped.push((format!("{} for {}", key.name(), key.arch()), why)),
            }
        }
        Ok(())
    }

    fn records(&mut self, cache: &KernelCache, contents: &Contents<'_>) -> Result<(), BundleError> {
        let ids = cache.records();
        if let Contents::These { records, .. } = contents {
            let is_there =
                |name: &(String, String)| ids.iter().any(|id| (&id.device, &id.file) == (&name.0, &name.1));
            for (device, file) in records.iter().filter(|name| !is_there(name)) {
                self.skipped.push((format!("{file} of {device}"), "it is not there".to_string()));
            }
        }
        for id in ids {
            let read = cache.record_parts(&id).and_then(|(place, bytes, content)| {
                let record = serde_json::from_slice::<TuneRecord>(&content);
                Ok((place, bytes, record.map_err(|error| error.to_string())?))
            });
            match read {
                Ok((place, bytes, record)) if contents.has_record(&id, &record) => {
                    self.add(place, bytes)?;
                    self.records.push(id);
                }
                Ok(_) => {}
                Err(why) => self.skipped.push((format!("{} of {}", id.file, id.device), why)),
            }
        }
        Ok(())
    }

    /// Adds a file, as long as an import would take it.
    fn add(&mut self, path: String, bytes: Vec<u8>) -> Result<(), BundleError> {
        let len = bytes.len() as u64;
        if self.files.insert(path, bytes).is_none() {
            self.bytes += len;
        }
        let too_much = |what, found: u64, limit: u64| match found > limit {
            true => Err(BundleError::TooMuch { what, found, limit }),
            false => Ok(()),
        };
        too_much("bytes", self.bytes, LARGEST)?;
        too_much("files", self.files.len() as u64, MOST_FILES as u64)
    }
}

/// The bundle.
fn pack(files: &BTreeMap<String, Vec<u8>>) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.include_checksum(true)?;
    let mut archive = tar::Builder::new(encoder);
    let listed = files.iter().map(|(path, bytes)| Listed {
        path: path.clone(),
        size: bytes.len() as u64,
        blake3: blake3::hash(bytes).to_hex().to_string(),
    });
    append(&mut archive, MANIFEST, &Manifest::new(listed.collect()).to_json())?;
    for (path, bytes) in files {
        append(&mut archive, path, bytes)?;
    }
    archive.into_inner()?.finish()
}

/// Adds a file without anything that differs from machine to machine: no times, no owners.
fn append(archive: &mut tar::Builder<impl Write>, path: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    archive.append_data(&mut header, path, bytes)
}
