//! Bundles: compiled kernels and tuning records in one file, to tune on one machine and ship to many.
//!
//! A bundle is a tar archive within zstd. `manifest.json` comes first and lists every other file with its size and
//! blake3 digest; the files lie as in the [cache](crate::cache):
//! ```text
//! manifest.json
//! <arch>/<name>-<hash>/{kernel.cu,kernel.cubin,meta.json}   a compiled kernel
//! tune/<device>/<file>.json                                 a tuning record
//! ```
//! The same content gives the same bytes: when and how long a kernel was compiled is left out.
//!
//! [`import`] trusts nothing it reads: it unpacks into a private folder of the cache with limits on everything,
//! verifies all of it, and only then publishes entry by entry. What it cannot do is know who made a bundle: the digests
//! tell damage, not forgery, and a cubin is code that safe functions run later. That is why it is `unsafe`: import
//! bundles from where you would run programs from; [`ExportReport::blake3`] names the file as it left.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! use tilewright::bundle::{BundleError, Contents, export};
//! use tilewright::cache::KernelCache;
//!
//! let cache = KernelCache::at(&folder.path().join("kernels"))?;
//! let file = folder.path().join("bundle.tar.zst");
//! // Nothing was compiled yet.
//! assert!(matches!(export(&cache, &Contents::Everything, &file), Err(BundleError::Empty { .. })));
//! # Ok(())
//! # }
//! ```

mod error;
mod export;
mod import;
mod manifest;
mod place;
mod unpack;

pub use error::{BundleError, PathFault, Refusal};
/// As [`export`], to an output that is open; public for the command alone.
#[doc(hidden)]
pub use export::export_to;
pub use export::{Contents, ExportReport, export};
pub use import::{ImportReport, RecordName, import, import_from};

/// The version of a bundle's form.
pub(crate) const SCHEMA: u32 = 1;

/// The most files of a bundle.
const MOST_FILES: usize = 1 << 16;

/// The most bytes of all files of a bundle together.
const LARGEST: u64 = 1 << 30;

/// How many times its size a bundle may unpack to, beyond [`SMALL`]. Sources and cubins of one kernel are much alike
/// and shrink a hundredfold at most; a file made to fill a disk does so ten-thousandfold.
const RATIO: u64 = 500;

/// What any bundle may unpack to.
const SMALL: u64 = 16 << 20;

/// The bytes that a bundle of `len` bytes may unpack to.
fn allowance(len: u64) -> u64 {
    len.saturating_mul(RATIO).saturating_add(SMALL)
}
