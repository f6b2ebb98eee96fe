//! What a cache can fail with.

use std::path::{Path, PathBuf};

use super::CACHE_VARIABLE;

/// Why a folder cannot be the cache, or why something was not stored in it. Reading never fails: what cannot be read
/// is a miss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// There is nowhere to keep a cache.
    #[error(
        "there is no folder for the kernel cache, because this user has no home. Set {CACHE_VARIABLE} to a folder."
    )]
    NoFolder,
    /// The place is taken by something else.
    #[error(
        "the kernel cache's {} is not a folder, and a folder was needed. Set {CACHE_VARIABLE} to a folder of your own.",
        path.display()
    )]
    NotAFolder {
        /// The place.
        path: PathBuf,
    },
    /// The folder is another user's.
    #[error(
        "the kernel cache cannot lie in {}, which belongs to user {owner}: it must belong to user {user}, who runs this, or to \
         root, for what lies in it is executed. Set {CACHE_VARIABLE} to a folder of your own.",
        path.display()
    )]
    Owner {
        /// The folder.
        path: PathBuf,
        /// The user it belongs to.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// Others may write to the folder.
    #[error(
        "the kernel cache cannot lie in {}, which has mode {mode:03o}: only you and root may be able to write to it, for \
         what lies in it is executed. {}",
        path.display(), keep_others_out(path, *ours)
    )]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Whether it is for this user to change: a folder for all, such as `/tmp`, is not.
        ours: bool,
    },
    /// The folder is root's, and not for others to read.
    #[error(
        "the kernel cache in {} belongs to root, and you may not read it. Let root run `chmod -R a+rX` on the cache, or set \
         {CACHE_VARIABLE} to a folder of your own.",
        path.display()
    )]
    Unreadable {
        /// The folder.
        path: PathBuf,
    },
    /// A cubin that is not what its key says.
    #[error(
        "the cubin to store as `{name}` has {what} {found}, and its key says {needed}: make the key of what was compiled"
    )]
    Mismatch {
        /// The key's kernel.
        name: String,
        /// What differs.
        what: &'static str,
        /// As the cubin has it.
        found: String,
        /// As the key has it.
        needed: String,
    },
    /// A cubin that is cut short.
    #[error("the cubin to store as `{name}` ({bytes} bytes) is not a whole ELF file: compile it again")]
    NotWhole {
        /// The kernel.
        name: String,
        /// How many bytes there are.
        bytes: usize,
    },
    /// More than the cache reads back.
    #[error(
        "the {what} to store as `{name}` has {bytes} bytes, and {limit} is the most the cache keeps: do without caching it"
    )]
    TooLarge {
        /// The kernel or the record.
        name: String,
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The largest size.
        limit: u64,
    },
    /// A file or a folder could not be used.
    #[error(
        "could not {action} {}: {source}. Free space or permission there, or set {CACHE_VARIABLE} to another folder.",
        path.display()
    )]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What to do about a folder that others may write to. A place for all is not to be changed for the cache's sake.
fn keep_others_out(path: &Path, ours: bool) -> String {
    match ours {
        true => format!(
            "If it is for you alone, and nobody has changed what is in it, run `chmod go-w '{}'`; else set {CACHE_VARIABLE} to \
             another folder.",
            path.display()
        ),
        false => format!("Set {CACHE_VARIABLE} to a folder of your own, in a place that is for you alone."),
    }
}

impl CacheError {
    /// Whether somebody else could have put something into the folder: then nothing is to be run from it.
    pub fn is_unsafe(&self) -> bool {
        matches!(self, CacheError::Owner { .. } | CacheError::Writable { .. })
    }
}

/// Turns a system's error into a typed one.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CacheError {
    move |source| CacheError::Io { action, path: path.to_path_buf(), source }
}
