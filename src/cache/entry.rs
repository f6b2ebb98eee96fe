//! An entry: a folder with a source, its cubin and the facts about them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::error::io_error;
use super::files::{self, Fault};
use super::key::{CubinKey, digest, file_name};
use super::meta::{self, Meta};
use super::{CacheError, private};
use crate::compile::Cubin;

pub(super) const SOURCE: &str = "kernel.cu";
pub(super) const CUBIN: &str = "kernel.cubin";
pub(super) const META: &str = "meta.json";
/// An empty file whose time says when the entry was last used.
pub(super) const USED: &str = "used";

/// The largest source or cubin that is kept.
pub(super) const LARGEST: u64 = 256 << 20;

/// How old an access stamp is before it is renewed.
const STAMP_AGE: Duration = Duration::from_secs(3600);

/// How often publishing tries to clear the way.
const ATTEMPTS: usize = 8;

/// An entry with nothing wrong with it.
pub(super) struct Loaded {
    pub key: CubinKey,
    pub source: String,
    pub cubin: Cubin,
}

/// Reads meta.json of an entry and checks that it belongs where it lies.
pub(super) fn read_meta(folder: &Path) -> Result<(Meta, CubinKey), Fault> {
    // The architecture's folder too: a link there would lead out of the cache.
    for path in folder.parent().into_iter().chain([folder]) {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) if path == folder => return Err(Fault::Broken("it is not a folder".to_string())),
            Ok(_) => return Err(Fault::Absent),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Fault::Absent),
            Err(error) => return Err(Fault::Io(error)),
        }
    }
    let meta = Meta::from_json(&read_file(folder, META, meta::LARGEST)?)?;
    let key = meta.key();
    let lies_in = |path: Option<&Path>, name: &str| path.and_then(Path::file_name).is_some_and(|f| f == name);
    match lies_in(Some(folder), &key.folder()) && lies_in(folder.parent(), &file_name(key.arch())) {
        true => Ok((meta, key)),
        false => Err(Fault::Broken(format!("it holds `{}` for {} ({})", key.name(), key.arch(), key.hash()))),
    }
}

/// Reads an entry and verifies every byte of it.
pub(super) fn load(folder: &Path) -> Result<Loaded, Fault> {
    let (meta, key) = read_meta(folder)?;
    let verified = |name: &str, bytes: u64, blake3: &str| {
        let limit = bytes.min(LARGEST);
        let content = read_file(folder, name, limit)?;
        match content.len() as u64 == bytes && digest(&content) == blake3 {
            true => Ok(content),
            false => Err(Fault::Broken(format!("{name} is not what meta.json says"))),
        }
    };
    let bytes = verified(CUBIN, meta.cubin_bytes, &meta.cubin_blake3)?;
    let source = verified(SOURCE, meta.source_bytes, key.source_blake3())?;
    let source = String::from_utf8(source).map_err(|_| Fault::Broken(format!("{SOURCE} is not UTF-8")))?;
    let cubin = Cubin {
        name: key.name().to_string(),
        arch: key.arch().to_string(),
        nvrtc: key.nvrtc(),
        bytes,
        source: Some(blake3::hash(source.as_bytes())),
        report: meta.report,
        compile_time: meta.compile_time(),
        warnings: meta.warnings,
        log: String::new(),
    };
    match cubin.is_whole() {
        true => Ok(Loaded { key, source, cubin }),
        false => Err(Fault::Broken(format!("{CUBIN} is not a whole ELF file"))),
    }
}

/// A file of an entry that is there.
fn read_file(folder: &Path, name: &str, limit: u64) -> Result<Vec<u8>, Fault> {
    match files::read(&folder.join(name), limit) {
        // Pruned meanwhile, or never complete.
        Err(Fault::Absent) if fs::symlink_metadata(folder).is_ok() => {
            Err(Fault::Broken(format!("{name} is missing")))
        }
        result => result,
    }
}

/// Publishes an entry: readers see all of it or nothing. An equal one that is there already is left as it is.
pub(super) fn publish(v1: &Path, key: &CubinKey, source: &str, cubin: &Cubin) -> Result<(), CacheError> {
    let parent = v1.join(file_name(key.arch()));
    files::make_folder(v1, &parent)?;
    let temporary = files::new_folder(&parent, &files::temporary_prefix())?;
    let meta = Meta::new(key, source, cubin).to_json();
    let parts: [(&str, &[u8]); 4] =
        [(SOURCE, source.as_bytes()), (CUBIN, &cubin.bytes), (META, &meta), (USED, &[])];
    for (name, bytes) in parts {
        let path = temporary.path().join(name);
        files::write_new(&path, bytes).map_err(io_error("write", &path))?;
    }
    files::sync_folder(temporary.path());

    let target = parent.join(key.folder());
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match fs::rename(temporary.path(), &target) {
            Ok(()) => {
                let _ = temporary.keep();
                files::sync_folder(&parent);
                return Ok(());
            }
            Err(error) => last = Some(error),
        }
        match load(&target) {
            // Another process was faster: its entry is as good as ours.
            Ok(_) => return Ok(()),
            Err(Fault::Absent) => {}
            Err(fault) => files::quarantine(v1, &target, &fault.to_string())?,
        }
    }
    Err(io_error("publish", &target)(last.unwrap_or_else(|| io::ErrorKind::Other.into())))
}

/// Notes that an entry was used, at most once an hour. A cache that cannot be written to goes without.
pub(super) fn stamp(folder: &Path) {
    let path = folder.join(USED);
    let now = SystemTime::now();
    let recent = fs::symlink_metadata(&path)
        .and_then(|metadata| metadata.modified())
        // A stamp from the future (the clock was set back) has no age, and is renewed too.
        .is_ok_and(|used| now.duration_since(used).is_ok_and(|age| age < STAMP_AGE));
    if !recent {
        let file = files::open(OpenOptions::new().write(true).create(true).truncate(false), &path);
        let _ = file.and_then(|file: File| file.set_modified(now));
    }
}

/// Checks that a cubin and a source are the key's.
pub(super) fn check(key: &CubinKey, source: &str, cubin: &Cubin) -> Result<(), CacheError> {
    let name = || key.name().to_string();
    let same = |what, found: &dyn ToString, needed: &dyn ToString| {
        let (found, needed) = (found.to_string(), needed.to_string());
        match found == needed {
            true => Ok(()),
            false => Err(CacheError::Mismatch { name: name(), what, found, needed }),
        }
    };
    let version = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    same("the name", &cubin.name, &key.name())?;
    same("the architecture", &cubin.arch, &key.arch())?;
    same("the NVRTC version", &version(cubin.nvrtc), &version(key.nvrtc()))?;
    same("a source of digest", &digest(source.as_bytes()), &key.source_blake3())?;
    // Code of another source under this key would run in its stead.
    let compiled =
        cubin.source.map_or_else(|| "nobody knows".to_owned(), |source| source.to_hex().to_string());
    same("code of a source of digest", &compiled, &key.source_blake3())?;
    for (what, bytes) in [("source", source.len()), ("cubin", cubin.bytes.len())] {
        if bytes as u64 > LARGEST {
            return Err(CacheError::TooLarge { name: name(), what, bytes, limit: LARGEST });
        }
    }
    let text = key.name().len() + key.options().iter().map(String::len).sum::<usize>();
    if text as u64 > meta::LARGEST / 16 {
        return Err(CacheError::TooLarge {
            name: name(),
            what: "options",
            bytes: text,
            limit: meta::LARGEST / 16,
        });
    }
    match cubin.is_whole() {
        true => Ok(()),
        false => Err(CacheError::NotWhole { name: name(), bytes: cubin.bytes.len() }),
    }
}

/// The folders of all entries, complete or not: anything that bears an entry's name.
pub(super) fn folders(v1: &Path) -> Vec<std::path::PathBuf> {
    let archs = files::children(v1).into_iter().filter(|path| {
        let reserved = super::key::RESERVED.iter().any(|name| path.ends_with(name));
        !reserved && !files::is_temporary(path)
    });
    archs.flat_map(|arch| files::children(&arch)).filter(|path| !files::is_temporary(path)).collect()
}

/// Makes sure of `v1`, as far as the disk allows: a folder that can only be read is a cache too.
pub(super) fn prepare(v1: &Path) -> Result<(), CacheError> {
    match private::folder(v1, false) {
        Err(CacheError::Io { source, .. }) => {
            tracing::warn!(path = %v1.display(), %source, "the kernel cache cannot be written to");
            Ok(())
        }
        result => result,
    }
}
