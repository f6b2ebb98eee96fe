//! What exporting and importing can fail with.

use std::io;
use std::path::PathBuf;

use super::SCHEMA;
use crate::cache::{CacheError, LIMIT_VARIABLE};
use crate::output::{printable, shown};

/// Why a bundle was not made or not imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The bundle is not one to import. The cache is as it was.
    #[error("the bundle {} was refused, and nothing of it imported: {refusal}", shown(path))]
    Refused {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with it.
        refusal: Refusal,
    },
    /// The bundle cannot be opened.
    #[error("could not open the bundle {}: {source}; name the file that was exported", shown(path))]
    Open {
        /// The bundle.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bundle cannot be written. What was there before is as it was.
    #[error(
        "could not write the bundle {}: {source}; free space or permission there, or name another place",
        shown(path)
    )]
    Write {
        /// The bundle.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Unpacking failed for reasons of this machine.
    #[error(
        "could not unpack the bundle in {}: {source}; free space or permission there and import again",
        shown(path)
    )]
    Unpack {
        /// The file that could not be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing to put in.
    #[error(
        "the kernel cache {} holds nothing of what was to be exported: make the calls once, so \
         that it holds their kernels",
        shown(cache)
    )]
    Empty {
        /// The cache.
        cache: PathBuf,
    },
    /// More than an import takes.
    #[error(
        "{what} to export: {found}, and {limit} is the most that an import takes. Export an architecture at a time (`Contents::Archs`)."
    )]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// How much there may be.
        limit: u64,
    },
    /// The cache's limit is less than what the bundle holds. Nothing of it was imported.
    #[error(
        "the bundle's kernels take {needed} bytes, and the limit of the kernel cache {} is {limit}: some would be removed at \
         once. Set {LIMIT_VARIABLE} to more, or export an architecture at a time (`Contents::Archs`)",
        shown(cache)
    )]
    OverLimit {
        /// The cache.
        cache: PathBuf,
        /// What the bundle's kernels take.
        needed: u64,
        /// What all kernels may take.
        limit: u64,
    },
    /// The cache cannot be used. Of an import that ends so, what was published is sound and stays.
    #[error("{0} Then import again: what is there already is kept.")]
    Cache(#[from] CacheError),
}

/// What is wrong with a bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It ends too early.
    #[error("it ends in the middle; copy it again")]
    Truncated,
    /// It cannot be unpacked.
    #[error("it is damaged, or no bundle ({}); copy it again, or export it again", printable(.0))]
    Damaged(String),
    /// Something follows the end.
    #[error("something follows its end; export it again")]
    TrailingData,
    /// The list of files is not where it has to be.
    #[error(
        "it begins with {found:?}, and `manifest.json` has to come first; make bundles with `bundle::export`"
    )]
    NoManifest {
        /// What comes first.
        found: String,
    },
    /// The list of files cannot be read.
    #[error("its manifest.json is unreadable: {}; export it again", printable(.0))]
    Manifest(String),
    /// Another version of the form.
    #[error(
        "it has schema {found}, made by {created_by:?}, and this version reads schema {SCHEMA}: export it with the version that imports it"
    )]
    Schema {
        /// Its schema.
        found: u32,
        /// What made it, as it says itself.
        created_by: String,
    },
    /// A file has no business in a bundle.
    #[error("its file {path:?} {fault}; do not use this bundle")]
    Path {
        /// The file's path.
        path: String,
        /// What is wrong with it.
        fault: PathFault,
    },
    /// Something else than a file.
    #[error("{path:?} is {kind}, and only plain files belong in a bundle; do not use this bundle")]
    NotAFile {
        /// Its path.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// A file comes twice.
    #[error("its file {path:?} comes twice; do not use this bundle")]
    Duplicate {
        /// The file's path.
        path: String,
    },
    /// A file is not in the list.
    #[error("its manifest does not list {path:?}; do not use this bundle")]
    Unlisted {
        /// The file's path.
        path: String,
    },
    /// A file of the list, or of an entry, is not there.
    #[error("its file {path:?} is missing; export it again")]
    Missing {
        /// The file's path.
        path: String,
    },
    /// A file has another size than the list says.
    #[error("its file {path:?} has {found} bytes, and the manifest says {listed}; copy it again")]
    Size {
        /// The file's path.
        path: String,
        /// Its size.
        found: u64,
        /// The size in the list.
        listed: u64,
    },
    /// A file has another content than the list says.
    #[error("its file {path:?} is not the one that the manifest lists (its digest differs); copy it again")]
    Digest {
        /// The file's path.
        path: String,
    },
    /// Too much of something.
    #[error("{what} {found}, and {limit} is the most; do not use this bundle")]
    TooLarge {
        /// Of what.
        what: String,
        /// How much there is.
        found: u64,
        /// How much there may be.
        limit: u64,
    },
    /// A small file that unpacks without end.
    #[error("its {bytes} bytes unpack to more than {limit}; do not use this bundle")]
    Bomb {
        /// The bundle's size.
        bytes: u64,
        /// What a bundle of that size may unpack to.
        limit: u64,
    },
    /// A compiled kernel or a record that the cache would not take.
    #[error("{path:?} cannot be used: {}; export it again", printable(why))]
    Content {
        /// The entry's folder or the record's file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

/// What is wrong with the path of a file in a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathFault {
    /// It begins at the root.
    #[error("has an absolute path")]
    Absolute,
    /// It leads out of its folder.
    #[error("leads out of the bundle's folder")]
    Outside,
    /// It is of no form that a bundle has.
    #[error("is neither a file of a compiled kernel nor a tuning record")]
    Form,
}

impl Refusal {
    /// The error of a bundle.
    pub(super) fn of(self, bundle: &std::path::Path) -> BundleError {
        BundleError::Refused { path: bundle.to_owned(), refusal: self }
    }
}

/// A text of a stranger's, short enough to print. Debug formatting makes it harmless.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}
