//! The kernel cache: cubins and tuning records on the disk, for every later process.
//!
//! It is a folder of the user's (`TILEWRIGHT_CACHE`, else `tilewright` in the XDG cache folder):
//! ```text
//! v1/<arch>/<name>-<hash>/{kernel.cu,kernel.cubin,meta.json}   a cubin, its source, and the facts about it
//! v1/tune/<device>/<file>.json                                 a tuning record
//! v1/toolchain.json                                            where NVRTC was found
//! v1/quarantine/                                               what was damaged
//! v1/locks/                                                    who is compiling what
//! ```
//! An entry is built beside its place and appears with one rename, so it is there whole or not at all. Everything read
//! is verified against its digest first; what does not verify is a miss, goes to the quarantine and is made anew.
//! Locks only save compiling a thing twice, and no clock decides what is right. A disk that is full or cannot be
//! written to costs the caching, never the kernel.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let compile = || -> Result<_, &str> { Err("there is no NVRTC in this example") };
//! use tilewright::cache::{CubinKey, KernelCache};
//!
//! let cache = KernelCache::at(&folder.path().join("kernels"))?;
//! let source = "extern \"C\" __global__ void scale(float* x) { x[threadIdx.x] *= 2.0f; }";
//! let key = CubinKey::new("scale", "sm_90a", source, &["--std=c++17"], (13, 0));
//! assert!(cache.get(&key).is_none());
//! // The error is the compiler's own: the cache has none to give.
//! assert_eq!(cache.get_or_compile(&key, source, compile).unwrap_err(), "there is no NVRTC in this example");
//! # Ok(())
//! # }
//! ```

mod entry;
mod error;
mod files;
mod key;
mod lock;
mod meta;
mod private;
mod record;
mod sealed;
mod settings;
mod toolchain;
#[cfg(feature = "bundle")]
pub(crate) mod transfer;
mod upkeep;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::compile::{self, Cubin};
use files::Fault;
use lock::Wait;

pub use error::CacheError;
pub use key::CubinKey;
pub use lock::Lock;
pub use record::RecordId;
pub use settings::{CACHE_VARIABLE, LIMIT_VARIABLE, LOCK_TIMEOUT_VARIABLE, parse_size};
pub use upkeep::{ClearReport, Entry, PruneReport, VerifyReport};

/// The folder of this layout.
const V1: &str = "v1";

/// What has to be written before the cache is measured again: this part of the limit.
const MEASURE: u64 = 16;

/// A cache of cubins and tuning records in a folder. Clones share it, and so may any number of processes.
#[derive(Clone, Debug)]
pub struct KernelCache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    lock_timeout: Duration,
    limit: u64,
    /// Bytes that may still be written before the cache is measured.
    unmeasured: AtomicU64,
}

/// Where a cubin came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The cache had it.
    Cache,
    /// It was compiled.
    Compiled,
}

impl KernelCache {
    /// Opens the cache that the environment names: `TILEWRIGHT_CACHE`, else the user's XDG cache folder.
    ///
    /// # Errors
    /// Those of [`KernelCache::at`], and a user without a home.
    pub fn open() -> Result<Self, CacheError> {
        Self::at(&settings::folder()?)
    }

    /// The folder that the environment names. It need not be there, and is not created.
    ///
    /// # Errors
    /// A user without a home.
    pub fn folder() -> Result<PathBuf, CacheError> {
        settings::folder()
    }

    /// As [`KernelCache::open`], if the folder is there: for those who only want to look.
    ///
    /// # Errors
    /// Those of [`KernelCache::open`].
    pub fn open_existing() -> Result<Option<Self>, CacheError> {
        let folder = settings::folder()?;
        match std::fs::symlink_metadata(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            _ => Self::at(&folder).map(Some),
        }
    }

    /// The limit that the environment sets.
    pub fn default_limit() -> u64 {
        settings::limit()
    }

    /// Opens the cache in the folder `root`, which is created for this user alone; by root, for all to read.
    ///
    /// # Errors
    /// A folder that belongs to another user than this one and root, or one that others may write to, for cubins are code. A
    /// folder that may not be read, or that does not exist and cannot be created. A folder that can only be read is a
    /// cache that stores nothing.
    pub fn at(root: &Path) -> Result<Self, CacheError> {
        private::folder(root, true)?;
        let root = root.canonicalize().map_err(error::io_error("look at", root))?;
        entry::prepare(&root.join(V1))?;
        let (lock_timeout, limit) = (settings::lock_timeout(), settings::limit());
        let cache =
            Self { inner: Arc::new(Inner { root, lock_timeout, limit, unmeasured: AtomicU64::new(0) }) };
        cache.sweep();
        Ok(cache)
    }

    /// The same cache with another time to wait for a process that compiles the same kernel, 20 seconds by default.
    pub fn with_lock_timeout(self, lock_timeout: Duration) -> Self {
        self.with(|inner| inner.lock_timeout = lock_timeout)
    }

    /// The same cache with another limit for the bytes of all entries, 2 GiB by default.
    pub fn with_limit(self, limit: u64) -> Self {
        self.with(|inner| inner.limit = limit)
    }

    fn with(self, change: impl FnOnce(&mut Inner)) -> Self {
        let Inner { ref root, lock_timeout, limit, .. } = *self.inner;
        let mut inner = Inner { root: root.clone(), lock_timeout, limit, unmeasured: AtomicU64::new(0) };
        change(&mut inner);
        Self { inner: Arc::new(inner) }
    }

    /// The folder of the cache.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The bytes that all entries together may take.
    pub fn limit(&self) -> u64 {
        self.inner.limit
    }

    fn v1(&self) -> PathBuf {
        self.inner.root.join(V1)
    }

    fn entry_folder(&self, key: &CubinKey) -> PathBuf {
        self.v1().join(key::file_name(key.arch())).join(key.folder())
    }

    /// The cubin of a key, every byte of it verified. Its log is empty: only the warnings are kept.
    pub fn get(&self, key: &CubinKey) -> Option<Cubin> {
        let found = self.load(&self.entry_folder(key), key);
        tracing::debug!(
            name = key.name(),
            arch = key.arch(),
            hash = key.hash(),
            hit = found.is_some(),
            "kernel cache"
        );
        found.map(|loaded| loaded.cubin)
    }

    /// The source that the cubin of a key was compiled from, verified with it.
    pub fn source(&self, key: &CubinKey) -> Option<String> {
        self.load(&self.entry_folder(key), key).map(|loaded| loaded.source)
    }

    /// The cubin of a source, whichever version of NVRTC made it: for machines without NVRTC. Of several it is the
    /// newest version's that `loads` says the driver can take. Only cubins compiled with [`compile::OPTIONS`], those of [`Toolchain::compile`], count.
    ///
    /// [`Toolchain::compile`]: crate::toolchain::Toolchain::compile
    pub fn find(
        &self,
        name: &str,
        arch: &str,
        source: &str,
        loads: impl Fn((i32, i32)) -> bool,
    ) -> Option<Cubin> {
        let key = |nvrtc| CubinKey::new(name, arch, source, compile::OPTIONS, nvrtc);
        let needed = key((0, 0));
        let prefix = format!("{}-", key::file_name(name));
        let mut versions: Vec<(i32, i32)> = files::children(&self.v1().join(key::file_name(arch)))
            .iter()
            .filter(|path| {
                path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(prefix.as_bytes()))
            })
            .filter_map(|path| entry::read_meta(path).ok())
            .filter(|(_, found)| found.source_blake3() == needed.source_blake3())
            .map(|(_, found)| found.nvrtc())
            .filter(|&nvrtc| loads(nvrtc))
            .collect();
        versions.sort();
        versions.dedup();
        versions.into_iter().rev().find_map(|nvrtc| self.get(&key(nvrtc)))
    }

    /// Stores a cubin. When an equal entry is there already (another process was faster), it stays.
    ///
    /// # Errors
    /// A cubin or source that is not the key's, a folder that cannot be written to, a full disk. Nothing is left of an
    /// entry that could not be stored.
    pub fn put(&self, key: &CubinKey, source: &str, cubin: &Cubin) -> Result<(), CacheError> {
        entry::check(key, source, cubin)?;
        entry::publish(&self.v1(), key, source, cubin)?;
        self.limit_size((cubin.bytes.len() + source.len()) as u64);
        Ok(())
    }

    /// The cubin of a key, from the cache or else from `compile`, whose cubin is then stored. Processes that ask for
    /// the same one wait for the first of them, but not for ever: after a time-out they compile it too. A cubin that
    /// cannot be stored is returned all the same, with a warning to `tracing`.
    ///
    /// # Errors
    /// Those of `compile` alone.
    pub fn get_or_compile<E>(
        &self,
        key: &CubinKey,
        source: &str,
        compile: impl FnOnce() -> Result<Cubin, E>,
    ) -> Result<(Cubin, Origin), E> {
        if let Some(cubin) = self.get(key) {
            return Ok((cubin, Origin::Cache));
        }
        let folder = self.entry_folder(key);
        let lock = lock::wait(&self.v1(), key.hash(), self.inner.lock_timeout, || folder.exists());
        // Whoever held the lock may have stored it.
        if let Some(cubin) = self.get(key) {
            return Ok((cubin, Origin::Cache));
        }
        let cubin = compile()?;
        tracing::debug!(name = key.name(), arch = key.arch(), time = ?cubin.compile_time, "compiled");
        if let Err(error) = self.put(key, source, &cubin) {
            tracing::warn!(name = key.name(), %error, "the kernel is compiled but not cached");
        }
        drop(lock);
        Ok((cubin, Origin::Compiled))
    }

    /// A lock between processes, waited for until `timeout`. None means to go on without: it takes too long, or locks
    /// do not work on this file system.
    pub fn lock(&self, name: &str, timeout: Duration) -> Option<Lock> {
        match lock::wait(&self.v1(), name, timeout, || false) {
            Wait::Held(lock) => Some(lock),
            Wait::Done | Wait::Without => None,
        }
    }

    /// Whether what lies in the cache may be used: nobody has put another folder in its place.
    fn is_ours(&self) -> bool {
        private::is_still(&self.inner.root) && private::is_still(&self.v1())
    }

    /// Loads an entry; one that is damaged or another key's is moved to the quarantine.
    fn load(&self, folder: &Path, key: &CubinKey) -> Option<entry::Loaded> {
        if !self.is_ours() {
            return None;
        }
        let result = entry::load(folder).and_then(|loaded| match loaded.key == *key {
            true => Ok(loaded),
            false => Err(Fault::Broken(format!("it holds `{}`", loaded.key.name()))),
        });
        // The schema is part of the hash: an entry of another one has no business under this name.
        let schema = |fault| match fault {
            Fault::Schema(_) => Fault::Broken(fault.to_string()),
            fault => fault,
        };
        let loaded = self.sound(folder, result.map_err(schema))?;
        entry::stamp(folder);
        Some(loaded)
    }

    /// What was read, if it is sound; what is not goes to the quarantine as far as that is possible.
    fn sound<T>(&self, path: &Path, result: Result<T, Fault>) -> Option<T> {
        match result {
            Ok(read) => return Some(read),
            // Another version's record is of no use here, and still is to that version.
            Err(Fault::Absent | Fault::Schema(_)) => {}
            Err(Fault::Io(error)) => {
                tracing::warn!(path = %path.display(), %error, "could not read a cache entry");
            }
            Err(Fault::Broken(why)) => {
                if let Err(error) = files::quarantine(&self.v1(), path, &why) {
                    tracing::warn!(path = %path.display(), why, %error, "ignored a damaged cache entry");
                }
            }
        }
        None
    }

    /// Prunes when entries take more than the limit. Looking at all of them takes a while, so it is done at a process's
    /// first store and then each time a part of the limit was written.
    fn limit_size(&self, written: u64) {
        let Inner { limit, ref unmeasured, .. } = *self.inner;
        let take = |left: u64| left.checked_sub(written);
        if unmeasured.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return;
        }
        unmeasured.store(limit / MEASURE, Ordering::Relaxed);
        let total: u64 = entry::folders(&self.v1()).iter().map(|path| upkeep::size(path)).sum();
        if total > limit {
            // What cannot be removed costs room, and no kernel.
            let (report, _) = self.prune_around(self.pruned_size(), &BTreeSet::new());
            tracing::info!(
                limit,
                removed = report.removed,
                freed = report.freed_bytes,
                "pruned the kernel cache"
            );
        }
    }
}
