//! The tuner with invented times: no GPU is needed.

pub(crate) mod fake;
mod key;
mod lock;
#[cfg(feature = "command")]
mod output;
mod plan;
mod race;
mod record;
mod synthetic;
