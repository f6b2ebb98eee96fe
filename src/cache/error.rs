//! What a cache can fail with.

use std::path::PathBuf;

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
        "the kernel cache's {} is not a folder, and a folder was needed. Remove it, or set {CACHE_VARIABLE} to another \
         place.",
        path.display()
    )]
    NotAFolder {
        /// The place.
        path: PathBuf,
    },
    /// The folder is another user's.
    #[error(
        "the kernel cache's folder {} belongs to user {owner}, and it must belong to user {user}, who runs this: what \
         lies in it is executed. Set {CACHE_VARIABLE} to a folder of your own.",
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
        "the kernel cache's folder {} has mode {mode:03o}, and only its owner may write to it: what lies in it is \
         executed. If nobody has changed what is in it, run `chmod go-w '{}'`; else set {CACHE_VARIABLE} to another folder.",
        path.display(), path.display()
    )]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
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
