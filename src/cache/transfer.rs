//! What bundles need of the cache: entries and records as they lie, and a look at those that lie elsewhere.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use super::error::io_error;
use super::files::{self, Fault};
use super::key::file_name;
use super::{CacheError, CubinKey, KernelCache, RecordId, entry, meta, private, sealed};
use crate::compile::Cubin;
use crate::leftover;

/// The names of an entry's files.
pub(crate) const PARTS: [&str; 3] = [entry::SOURCE, entry::CUBIN, entry::META];

/// Folders of the layout that are no architectures.
pub(crate) use super::key::RESERVED;

/// The largest of an entry's files, by its place in [`PARTS`].
pub(crate) const LARGEST_PART: [u64; 3] = [entry::LARGEST, entry::LARGEST, meta::LARGEST];

/// The largest file of a record.
pub(crate) const LARGEST_RECORD: u64 = super::record::LARGEST + super::record::SEAL;

/// An entry that lies outside the cache, verified.
pub(crate) struct Staged {
    pub key: CubinKey,
    pub source: String,
    pub cubin: Cubin,
}

/// Why something that lies outside the cache cannot come in.
pub(crate) enum Unfit {
    /// Another version of Tilewright made it.
    Schema(u32),
    /// It is not what it should be.
    Broken(String),
}

impl From<Fault> for Unfit {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Schema(schema) => Unfit::Schema(schema),
            fault => Unfit::Broken(fault.to_string()),
        }
    }
}

impl KernelCache {
    /// A folder for this user alone, root too, on the cache's disk, and its lock. What killed processes left of theirs is removed.
    pub(crate) fn staging(&self) -> Result<(tempfile::TempDir, Option<File>), CacheError> {
        let v1 = self.v1();
        private::folder(&v1, false)?;
        leftover::sweep(&v1, &[files::STAGING]);
        leftover::folder(&v1, files::STAGING).map_err(io_error("create a folder in", &v1))
    }

    /// The place of an entry in the layout, and its files in the order of [`PARTS`], without what differs from one
    /// compilation to the next; or why it cannot be used.
    pub(crate) fn parts(&self, key: &CubinKey) -> Result<(String, [Vec<u8>; 3]), String> {
        let folder = self.entry_folder(key);
        let read = || {
            let meta = files::read(&folder.join(entry::META), meta::LARGEST)?;
            let loaded = entry::load(&folder)?;
            let meta = meta::Meta::from_json(&meta)?;
            match meta.key() == *key && loaded.key == *key {
                true => Ok([loaded.source.into_bytes(), loaded.cubin.bytes, meta.timeless().to_json()]),
                false => Err(Fault::Broken(format!("it holds `{}`", loaded.key.name()))),
            }
        };
        let parts = read().map_err(|fault: Fault| fault.to_string())?;
        Ok((format!("{}/{}", file_name(key.arch()), key.folder()), parts))
    }

    /// The place of a record in the layout, its file as it lies and its content; or why it cannot be used.
    pub(crate) fn record_parts(&self, id: &RecordId) -> Result<(String, Vec<u8>, Vec<u8>), String> {
        let bytes = files::read(&id.path, LARGEST_RECORD).map_err(|fault| fault.to_string())?;
        let opened = sealed::open(&bytes).map_err(|fault| fault.to_string())?;
        match opened.device == id.device && opened.file == id.file {
            true => Ok((record_place(&id.device, &id.file), bytes, opened.content)),
            false => Err(format!("it is the record `{}` of {}", opened.file, opened.device)),
        }
    }
}

/// Creates a file in a [staging](KernelCache::staging) folder that is not there yet, and its folders, for nobody else to write
/// whatever the mask of the process.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        private::create(parent, true)?;
    }
    files::open(OpenOptions::new().write(true).create_new(true), path)
}

/// What an entry that lies elsewhere takes.
pub(crate) fn entry_bytes(folder: &Path) -> u64 {
    super::upkeep::size(folder)
}

/// Reads an entry in a folder that is named as it would be in the cache, and verifies all of it.
pub(crate) fn read_entry(folder: &Path) -> Result<Staged, Unfit> {
    let entry::Loaded { key, source, cubin } = entry::load(folder)?;
    Ok(Staged { key, source, cubin })
}

/// Reads a record's file: the device, the record's name, and its content.
pub(crate) fn read_record(path: &Path) -> Result<(String, String, Vec<u8>), Unfit> {
    let opened = sealed::open(&files::read(path, LARGEST_RECORD)?)?;
    Ok((opened.device, opened.file, opened.content))
}

/// Where a record lies in the layout.
pub(crate) fn record_place(device: &str, file: &str) -> String {
    format!("tune/{}/{}.json", file_name(device), file_name(file))
}
