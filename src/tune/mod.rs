//! Which schedule is fastest on the GPU at hand: timed once, kept by fingerprint, explained on request.
//!
//! Nothing here touches a GPU. The caller gives a [`Bench`] that checks and times its candidates; a test gives one
//! with invented times. The steps, in order:
//!
//! 1. [`TuneKey`] of the kernel ([`spec_fingerprint`]), the GPU ([`DeviceKey`]) and the sizes ([`Bucket`]).
//! 2. [`TuneRecord::usable`] of what the cache holds under the key, then [`plan`]: a winner, or what has to be timed.
//! 3. [`DeviceLock`], so that two tuners do not disturb each other's clocks; read the record again once it is held.
//! 4. [`race`], and [`TuneRecord::new`] or [`TuneRecord::merge`] with its result.
//! 5. Where a launch of the winner fails, [`TuneRecord::demote`].
//!
//! ```
//! use tilewright::tune::{Bench, RaceSettings, race};
//!
//! struct Known([(&'static str, f64); 2]);
//! impl Bench for Known {
//!     fn len(&self) -> usize { self.0.len() }
//!     fn name(&self, i: usize) -> &str { self.0[i].0 }
//!     fn check(&mut self, _: usize) -> Result<(), String> { Ok(()) }
//!     fn time_us(&mut self, i: usize, _: u32) -> Result<f64, String> { Ok(self.0[i].1) }
//! }
//! let mut bench = Known([("four warps", 650.0), ("eight warps", 580.0)]);
//! let result = race(&mut bench, &RaceSettings::default(), &mut |_| {})?;
//! assert_eq!(result.winner().name, "eight warps");
//! # Ok::<(), tilewright::tune::RaceError>(())
//! ```

mod bench;
mod call;
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

pub use crate::services::{POLICY_VARIABLE, Policy, PolicyError, Progress};
pub use bench::Bench;
pub use call::Call;
pub use explain::Row;
pub use key::{Bucket, DENSITY_BANDS, DeviceKey, TuneKey, Workload};
pub use lock::DeviceLock;
pub use plan::{Plan, plan};
pub use race::{Entry, Finish, RaceError, RaceResult, RaceSettings, race};
pub use record::{Contender, Outcome, RecordError, SCHEMA, Timing, TuneRecord};
pub use spec::spec_fingerprint;
pub use synthetic::{MaskProfile, synthetic_mask};
