//! Which schedule is fastest on the GPU at hand: timed once, kept by fingerprint, explained on request.
//!
//! An attention does all of it, as its [`Policy`] says: `Choice` has the [`TuneRecord`] of each kernel. A
//! record is found again under its [`TuneKey`]: the kernel and what it computes, the GPU ([`DeviceKey`]), and sizes of about the same
//! ([`Bucket`]).

// Nothing here touches a GPU: a `Bench` checks and times its candidates, and a test gives one with invented times. The steps:
//
// 1. `TuneKey` of the kernel (`spec_fingerprint`), the GPU (`DeviceKey`) and the sizes (`Bucket`).
// 2. `TuneRecord::usable` of what the cache holds under the key, then `plan`: a winner, or what has to be timed.
// 3. `DeviceLock`, so that two tuners do not disturb each other's clocks; the record is read again once it is held.
// 4. `race`, and `TuneRecord::new` or `TuneRecord::merge` with its result.
// 5. Where a launch of the winner fails, `TuneRecord::demote`.
mod bench;
mod call;
mod contender;
mod explain;
mod key;
mod lock;
mod plan;
#[cfg(feature = "command")]
mod plot;
mod race;
mod record;
mod spec;
mod synthetic;
#[cfg(feature = "command")]
mod table;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use crate::services::{Policy, PolicyError, Progress};
/// What makes a record; public for the tests of bundles alone.
#[doc(hidden)]
pub use bench::Bench;
pub use call::Call;
pub use contender::Contender;
pub use explain::Row;
/// Sizes and masks to tune for; public for the tests and benchmarks alone.
#[doc(hidden)]
pub use key::Workload;
pub use key::{Bucket, DeviceKey, TuneKey};
pub(crate) use lock::DeviceLock;
pub(crate) use plan::{Plan, plan};
#[doc(hidden)]
pub use race::{Entry, Finish, RaceError, RaceResult, RaceSettings, race};
#[cfg(feature = "bundle")]
pub(crate) use record::SCHEMA;
pub use record::{Outcome, RecordError, Timing, TuneRecord};
/// What a record calls a kernel and what it computes; public for the tests alone.
#[doc(hidden)]
pub use spec::spec_fingerprint;
#[doc(hidden)]
pub use synthetic::synthetic_mask;
