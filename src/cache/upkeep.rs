//! What is in the cache, whether it is sound, and keeping it small.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::files::Fault;
use super::{CacheError, CubinKey, KernelCache, entry, files};
use crate::compile::PtxasReport;
use crate::leftover;

/// How often the cache is swept, and how old what a process left behind has to be.
const SWEEP_AGE: Duration = Duration::from_secs(3600);

/// A file that old is left behind whatever its process's number says: numbers come again.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// The file whose time says when the cache was last swept.
const SWEPT: &str = "swept";

/// An entry that is there. Its cubin was not verified: [`KernelCache::get`] with its key does that.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// What it is the cubin of.
    pub key: CubinKey,
    /// Its folder.
    pub path: PathBuf,
    /// Bytes on the disk.
    pub bytes: u64,
    /// What ptxas reported.
    pub report: PtxasReport,
    /// How long the compilation took.
    pub compile_time: Duration,
    /// When it was made, by the clock of that time: seconds since 1970.
    pub created: u64,
    /// When it was last used, to the hour.
    pub used: Option<SystemTime>,
}

/// What [`KernelCache::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Entries with nothing wrong with them.
    pub entries: usize,
    /// Tuning records with nothing wrong with them.
    pub records: usize,
    /// Entries and records of another version of Tilewright, left as they are.
    pub other_schema: usize,
    /// What is wrong, and why. It was moved to the quarantine, but for what is in `left`.
    pub broken: Vec<(PathBuf, String)>,
    /// Of what is wrong, what stays where it is, and why it could not be moved: a cache that can only be read, or root's. It is never
    /// used.
    pub left: Vec<(PathBuf, String)>,
    /// What could not be looked at, or is not to be trusted, and why. It may be all right, stays where it is, and is not used now.
    pub unread: Vec<(PathBuf, String)>,
}

/// What [`KernelCache::prune`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PruneReport {
    /// How many entries were removed.
    pub removed: usize,
    /// The bytes of all that was removed, the quarantine's among them.
    pub freed_bytes: u64,
    /// How many entries are left.
    pub kept: usize,
    /// Their bytes.
    pub kept_bytes: u64,
}

/// What [`KernelCache::clear`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClearReport {
    /// How many entries.
    pub entries: usize,
    /// How many tuning records.
    pub records: usize,
    /// The bytes of everything.
    pub freed_bytes: u64,
}

impl KernelCache {
    /// The entries, by architecture and name.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |path: PathBuf| {
            let (meta, key) = entry::read_meta(&path).ok()?;
            let (report, compile_time, created) = (meta.report, meta.compile_time(), meta.created);
            let (bytes, used) = (size(&path), modified(&path.join(entry::USED)));
            Some(Entry { key, path, bytes, report, compile_time, created, used })
        };
        entry::folders(&self.v1()).into_iter().filter_map(entry).collect()
    }

    /// Reads and verifies everything, and moves what is damaged to the quarantine.
    pub fn verify(&self) -> VerifyReport {
        let v1 = self.v1();
        let mut report = VerifyReport::default();
        let mut note =
            |path: PathBuf, result: Result<(), Fault>, sound: fn(&mut VerifyReport) -> &mut usize| {
                match result {
                    Ok(()) => *sound(&mut report) += 1,
                    Err(Fault::Absent) => {}
                    Err(Fault::Schema(_)) => report.other_schema += 1,
                    Err(Fault::Io(error)) => report.unread.push((path, error.to_string())),
                    Err(Fault::Broken(why)) => {
                        if let Err(error) = files::quarantine(&v1, &path, &why) {
                            report.left.push((path.clone(), error.to_string()));
                        }
                        report.broken.push((path, why));
                    }
                }
            };
        for path in entry::folders(&v1) {
            let result = entry::load(&path).map(drop);
            note(path, result, |report| &mut report.entries);
        }
        for path in self.record_files() {
            let result = self.check_record(&path);
            note(path, result, |report| &mut report.records);
        }
        report
    }

    /// Empties the quarantine and removes the entries that were used the longest time ago, until the entries take no
    /// more than `max_bytes`. Tuning records are small and stay.
    ///
    /// # Errors
    /// [`CacheError::Io`] for the first that cannot be removed, with the reason, after everything was tried: a cache on a disk
    /// that can only be read, or root's.
    pub fn prune(&self, max_bytes: u64) -> Result<PruneReport, CacheError> {
        let (report, failed) = self.prune_around(max_bytes, &BTreeSet::new());
        failed.map_or(Ok(report), Err)
    }

    /// Keeps the limit as storing does, without removing what was just imported. How many entries were removed.
    #[cfg(feature = "bundle")]
    pub(crate) fn make_room_around<'a>(&self, imported: impl Iterator<Item = &'a CubinKey>) -> usize {
        let total: u64 = entry::folders(&self.v1()).iter().map(|path| size(path)).sum();
        match total > self.limit() {
            true => {
                let keep = imported.map(|key| self.entry_folder(key)).collect();
                self.prune_around(self.pruned_size(), &keep).0.removed
            }
            false => 0,
        }
    }

    /// What pruning on its own leaves: a little below the limit, so that the next store does not prune again.
    pub(super) fn pruned_size(&self) -> u64 {
        self.limit() - self.limit() / super::MEASURE
    }

    /// What was done, and why the first of what could not be removed was not.
    pub(super) fn prune_around(
        &self,
        max_bytes: u64,
        keep: &BTreeSet<PathBuf>,
    ) -> (PruneReport, Option<CacheError>) {
        let mut report = PruneReport::default();
        let mut failed = None;
        let mut retire =
            |path: &Path| files::retire(path).map_err(|error| failed.get_or_insert(error)).is_ok();
        for path in files::children(&self.v1().join("quarantine")) {
            let bytes = size(&path);
            if retire(&path) {
                report.freed_bytes += bytes;
            }
        }
        let now = SystemTime::now();
        // A stamp of the future (the clock was set back) counts as now: it cannot keep an entry for ever.
        let used =
            |path: &Path| modified(&path.join(entry::USED)).or_else(|| modified(path)).map(|t| t.min(now));
        let mut entries: Vec<_> =
            entry::folders(&self.v1()).into_iter().map(|path| (used(&path), size(&path), path)).collect();
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in &entries {
            if total > max_bytes && !keep.contains(path) && retire(path) {
                tracing::debug!(path = %path.display(), bytes, "removed from the kernel cache");
                total -= bytes;
                report.removed += 1;
                report.freed_bytes += bytes;
            }
        }
        report.kept = entries.len() - report.removed;
        report.kept_bytes = total;
        (report, failed)
    }

    /// Removes everything: entries, tuning records, the quarantine.
    ///
    /// # Errors
    /// As [`KernelCache::prune`].
    pub fn clear(&self) -> Result<ClearReport, CacheError> {
        let mut report = ClearReport::default();
        let mut failed = None;
        let (entries, records) = (entry::folders(&self.v1()), self.record_files());
        for path in files::children(&self.v1()) {
            // Locks are held by processes, not by the cache.
            if path.ends_with("locks") {
                continue;
            }
            let bytes = size(&path);
            match files::retire(&path) {
                Ok(()) => report.freed_bytes += bytes,
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        report.entries = entries.iter().filter(|path| fs::symlink_metadata(path).is_err()).count();
        report.records = records.iter().filter(|path| fs::symlink_metadata(path).is_err()).count();
        failed.map_or(Ok(report), Err)
    }

    /// Removes what killed processes left behind. It is looked for once an hour.
    pub(super) fn sweep(&self) {
        let v1 = self.v1();
        let swept = v1.join(SWEPT);
        if age(&swept).is_some_and(|age| age < SWEEP_AGE) {
            return;
        }
        let options = &mut fs::OpenOptions::new();
        let stamp = files::open(options.write(true).create(true).truncate(false), &swept);
        // Where nothing can be written, nothing can be removed.
        if stamp.and_then(|file| file.set_modified(SystemTime::now())).is_err() {
            return;
        }
        leftover::sweep(&v1, &[files::STAGING]);
        let folders = files::children(&v1);
        let tuned = files::children(&v1.join("tune"));
        for folder in folders.iter().chain(&tuned).chain([&v1]) {
            for path in files::children(folder).into_iter().filter(|path| left_behind(path)) {
                tracing::debug!(path = %path.display(), "removed what a process left behind");
                files::remove(&path);
            }
        }
    }
}

/// Whether a process that is gone left this.
fn left_behind(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(age) = age(path).filter(|&age| age > SWEEP_AGE) else { return false };
    match name.strip_prefix(files::TEMPORARY) {
        Some(rest) => {
            // Of what has no number, such as an import's folder that somebody holds, the age alone tells.
            let process = rest.split('-').next().and_then(|number| number.parse().ok());
            age > ABANDONED || process.is_some_and(|process| !is_running(process))
        }
        // Removing a lock that is held after all costs a second compilation, nothing else.
        None => {
            name.ends_with(".lock")
                && path.parent().is_some_and(|parent| parent.ends_with("locks"))
                && age > ABANDONED
        }
    }
}

#[cfg(unix)]
fn is_running(process: i32) -> bool {
    use rustix::process::{Pid, test_kill_process};
    // Not being allowed to send a signal means that there is somebody to send it to.
    Pid::from_raw(process.max(0))
        .is_some_and(|pid| matches!(test_kill_process(pid), Ok(()) | Err(rustix::io::Errno::PERM)))
}

#[cfg(not(unix))]
fn is_running(_process: i32) -> bool {
    true
}

/// How far a file's time lies from now, in either direction: a clock that was set back makes nothing eternal.
fn age(path: &Path) -> Option<Duration> {
    let modified = modified(path)?;
    Some(SystemTime::now().duration_since(modified).unwrap_or_else(|error| error.duration()))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// The bytes of all files in a folder, or of a file.
pub(super) fn size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => files::children(path).iter().map(|path| size(path)).sum(),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    }
}
