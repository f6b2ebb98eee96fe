//! From a bundle to a cache.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::error::{BundleError, Refusal};
use super::manifest::Manifest;
use super::unpack::{Content, unpack};
use crate::cache::transfer::{self, Staged, Unfit};
use crate::cache::{CubinKey, KernelCache};
use crate::tune::{self, TuneRecord};

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportReport {
    /// Compiled kernels that are new.
    pub added: Vec<CubinKey>,
    /// Compiled kernels that were there already and are left as they were.
    pub present: Vec<CubinKey>,
    /// Tuning records that are new.
    pub added_records: Vec<RecordName>,
    /// Tuning records that took the place of others: the bundle's, for it was imported later.
    pub replaced_records: Vec<RecordName>,
    /// Tuning records that were there already.
    pub present_records: Vec<RecordName>,
    /// How many other kernels, those that were used the longest time ago, were removed to keep the cache's limit.
    pub removed: usize,
    /// What is sound but of no use to this version of Tilewright, with the reason.
    pub refused: Vec<(String, String)>,
}

/// A tuning record in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordName {
    /// The GPU's folder.
    pub device: String,
    /// The record's name.
    pub file: String,
}

/// Brings what is in a bundle into a cache.
///
/// All of it is verified before any of it is published; then it comes in entry by entry, each of which is there whole
/// or not at all. Importing twice, or again after an interruption, does no harm.
///
/// # Errors
/// [`BundleError::Refused`] for a bundle that is damaged or not made by an export, and [`BundleError::OverLimit`] for one
/// that the cache's limit has no room for: the cache is as it was. [`BundleError::Cache`] when the cache cannot be written
/// to.
///
/// # Safety
/// The bundle comes from somebody whose programs one would run: the kernels in it are code, which a later call of a safe
/// function runs on the GPU. What is verified is that a bundle agrees with itself, not who made it. Where the way from there
/// is not safe, compare the file's digest with [`ExportReport::blake3`](super::ExportReport::blake3) first.
pub unsafe fn import(cache: &KernelCache, from: &Path) -> Result<ImportReport, BundleError> {
    let content = Content::open(from);
    import_content(
        cache,
        from,
        content.map_err(|source| BundleError::Open { path: from.to_owned(), source })?,
    )
}

/// The same of a bundle that comes from somewhere else than a file, such as standard input. Messages call it `name`.
///
/// # Errors
/// As [`import`].
///
/// # Safety
/// As [`import`].
pub unsafe fn import_from(
    cache: &KernelCache,
    name: &Path,
    bundle: impl Read + 'static,
) -> Result<ImportReport, BundleError> {
    import_content(cache, name, Content::of(bundle))
}

fn import_content(cache: &KernelCache, from: &Path, bundle: Content) -> Result<ImportReport, BundleError> {
    let (staging, _alive) = cache.staging()?;
    let manifest = unpack(from, bundle, staging.path())?;
    let mut report = ImportReport::default();
    let contents = verify(staging.path(), &manifest, &mut report).map_err(|refusal| refusal.of(from))?;
    let sizes = contents.entries.iter().map(|folder| transfer::entry_bytes(&staging.path().join(folder)));
    let (needed, limit) = (sizes.sum::<u64>(), cache.limit());
    if needed > limit {
        return Err(BundleError::OverLimit { cache: cache.root().to_owned(), needed, limit });
    }
    // What was published first must not make room for what is published last.
    let unlimited = cache.clone().with_limit(u64::MAX);

    // The kernels first: a record whose winner is not there yet would have it compiled.
    for folder in contents.entries {
        // Read again, since all of them at once might not fit the memory.
        let refused = |unfit| content(folder, unfit).of(from);
        let Staged { key, source, cubin } =
            transfer::read_entry(&staging.path().join(folder)).map_err(refused)?;
        if cache.get(&key).is_some() {
            report.present.push(key);
            continue;
        }
        unlimited.put(&key, &source, &cubin)?;
        report.added.push(key);
    }
    for (name, content) in contents.records {
        match cache.read_record(&name.device, &name.file) {
            Some(found) if found == content => report.present_records.push(name),
            found => {
                cache.write_record(&name.device, &name.file, &content)?;
                let done =
                    if found.is_some() { &mut report.replaced_records } else { &mut report.added_records };
                done.push(name);
            }
        }
    }
    report.removed = cache.make_room_around(report.added.iter().chain(&report.present));
    tracing::debug!(path = %from.display(), added = report.added.len(), "imported");
    Ok(report)
}

/// What can be published.
struct Verified<'a> {
    entries: Vec<&'a str>,
    records: Vec<(RecordName, Vec<u8>)>,
}

/// Reads everything that was unpacked as the cache and the tuner would.
fn verify<'a>(
    folder: &Path,
    manifest: &'a Manifest,
    report: &mut ImportReport,
) -> Result<Verified<'a>, Refusal> {
    let mut verified = Verified { entries: Vec::new(), records: Vec::new() };
    let (entries, records) = manifest.contents();
    for entry in entries {
        match transfer::read_entry(&folder.join(entry)) {
            Ok(Staged { key, .. })
                if [key.name(), key.arch()].iter().any(|text| text.contains(char::is_control)) =>
            {
                // It would reach the terminal of whoever lists the cache.
                let why = "its name has control characters".to_string();
                return Err(content(entry, Unfit::Broken(why)));
            }
            Ok(_) => verified.entries.push(entry),
            Err(Unfit::Schema(schema)) => report.refused.push((entry.to_string(), other(schema))),
            Err(unfit) => return Err(content(entry, unfit)),
        }
    }
    for path in records {
        match read_record(folder, path) {
            Ok(record) => verified.records.push(record),
            Err(Unfit::Schema(schema)) => report.refused.push((path.to_string(), other(schema))),
            Err(unfit) => return Err(content(path, unfit)),
        }
    }
    Ok(verified)
}

fn read_record(folder: &Path, path: &str) -> Result<(RecordName, Vec<u8>), Unfit> {
    /// The one field that every version has.
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let broken = |error: serde_json::Error| Unfit::Broken(error.to_string());
    let (device, file, content) = transfer::read_record(&folder.join(path))?;
    if transfer::record_place(&device, &file) != path {
        return Err(Unfit::Broken(format!("it is the record {file:?} of {device:?}")));
    }
    let Version { schema } = serde_json::from_slice(&content).map_err(broken)?;
    if schema != tune::SCHEMA {
        return Err(Unfit::Schema(schema));
    }
    let record: TuneRecord = serde_json::from_slice(&content).map_err(broken)?;
    let stem = |name: &str| name.trim_end_matches(".json").to_owned();
    let (needed_device, needed_file) = (record.key().device.folder_name(), record.key().file_name());
    match device == needed_device && stem(&file) == stem(&needed_file) {
        true => Ok((RecordName { device, file }, content)),
        false => Err(Unfit::Broken(format!("it is the record {needed_file:?} of {needed_device:?}"))),
    }
}

fn content(path: &str, unfit: Unfit) -> Refusal {
    let why = match unfit {
        Unfit::Schema(schema) => other(schema),
        Unfit::Broken(why) => why,
    };
    Refusal::Content { path: path.to_string(), why }
}

fn other(schema: u32) -> String {
    format!(
        "it has schema {schema}, which this version of Tilewright does not read: tune or compile it again"
    )
}
