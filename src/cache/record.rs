//! Tuning records: files of the tuner's own, kept as safely as cubins.

use std::path::PathBuf;

use super::files::{self, Fault};
use super::key::file_name;
use super::{CacheError, KernelCache, sealed};

/// The largest record.
pub(super) const LARGEST: u64 = 64 << 20;

/// The most bytes that the seal adds, whatever the names.
pub(super) const SEAL: u64 = 1 << 20;

/// A record that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordId {
    /// The device, as [`KernelCache::write_record`] was told.
    pub device: String,
    /// The record's name, as [`KernelCache::write_record`] was told.
    pub file: String,
    /// Where it lies.
    pub path: PathBuf,
}

impl KernelCache {
    /// The content of a record, verified. One that is damaged is moved to the quarantine and a miss.
    pub fn read_record(&self, device: &str, file: &str) -> Option<Vec<u8>> {
        let path = self.record_path(device, file);
        let opened = self.sound(&path, self.read_sealed(&path))?;
        if (opened.device.as_str(), opened.file.as_str()) == (device, file) {
            return Some(opened.content);
        }
        let why = format!("it is the record `{}` of {}", opened.file, opened.device);
        let _ = files::quarantine(&self.v1(), &path, &why);
        None
    }

    /// Writes a record: readers see the old content or the new one. `device` and `file` are names of any form; the
    /// file gets the ending `.json`.
    ///
    /// # Errors
    /// A folder that cannot be written to, a full disk, or a record of more than 64 MiB.
    pub fn write_record(&self, device: &str, file: &str, bytes: &[u8]) -> Result<(), CacheError> {
        let long = bytes.len() as u64 > LARGEST || (device.len() + file.len()) as u64 > SEAL / 16;
        if long {
            let name = file_name(file);
            return Err(CacheError::TooLarge { name, what: "record", bytes: bytes.len(), limit: LARGEST });
        }
        let (v1, path) = (self.v1(), self.record_path(device, file));
        files::make_folder(&v1, &v1.join("tune"))?;
        files::make_folder(&v1, path.parent().unwrap_or(&v1))?;
        files::replace(&v1, &path, &sealed::seal(device, file, bytes))
    }

    /// Every record that is sound, in the order of the files' names.
    pub fn records(&self) -> Vec<RecordId> {
        let sound = |path: PathBuf| {
            let opened = self.read_sealed(&path).ok()?;
            let there = self.record_path(&opened.device, &opened.file) == path;
            there.then_some(RecordId { device: opened.device, file: opened.file, path })
        };
        self.record_files().into_iter().filter_map(sound).collect()
    }

    /// Everything that bears a record's name.
    pub(super) fn record_files(&self) -> Vec<PathBuf> {
        let devices = files::children(&self.v1().join("tune"));
        let files = devices.iter().flat_map(|device| files::children(device));
        files.filter(|path| !files::is_temporary(path)).collect()
    }

    /// What is wrong with a record's file.
    pub(super) fn check_record(&self, path: &std::path::Path) -> Result<(), Fault> {
        let opened = self.read_sealed(path)?;
        match self.record_path(&opened.device, &opened.file) == path {
            true => Ok(()),
            false => Err(Fault::Broken(format!("it is the record `{}` of {}", opened.file, opened.device))),
        }
    }

    pub(super) fn read_sealed(&self, path: &std::path::Path) -> Result<sealed::Opened, Fault> {
        // No folder on the way may lead out of the cache.
        let outside = path
            .ancestors()
            .skip(1)
            .take_while(|folder| *folder != self.v1())
            .any(|folder| !std::fs::symlink_metadata(folder).is_ok_and(|metadata| metadata.is_dir()));
        match outside || !self.is_ours() {
            true => Err(Fault::Absent),
            false => files::read(path, LARGEST + SEAL).and_then(|bytes| sealed::open(&bytes)),
        }
    }

    fn record_path(&self, device: &str, file: &str) -> PathBuf {
        self.v1().join("tune").join(file_name(device)).join(format!("{}.json", file_name(file)))
    }
}
