//! A candidate as records have it.

use crate::codegen::{Schedule, Variant};
use crate::compile::PtxasReport;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A candidate as it is known before it is timed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contender {
    /// The variant's fingerprint.
    pub fingerprint: String,
    /// How it is computed.
    pub schedule: Schedule,
    /// Registers a thread, as ptxas reported them.
    pub registers: Option<u32>,
    /// Shared memory of a block in bytes, static and dynamic.
    pub smem_bytes: u64,
    /// Blocks that fit a multiprocessor at once, as the driver says.
    pub blocks_per_sm: Option<u32>,
    /// How long NVRTC took.
    pub compile_ms: Option<f64>,
}

impl Contender {
    /// A variant of which no more is known: it does not compile, say.
    pub(crate) fn of_variant(variant: &Variant) -> Self {
        Contender {
            fingerprint: variant.fingerprint.clone(),
            schedule: variant.candidate.schedule.clone(),
            registers: None,
            smem_bytes: variant.candidate.budget.smem_bytes.try_into().unwrap_or_default(),
            blocks_per_sm: None,
            compile_ms: None,
        }
    }

    /// A variant that is loaded, with what ptxas and the driver say of it.
    pub(crate) fn of_loaded(
        variant: &Variant,
        report: &PtxasReport,
        compile_time: Duration,
        blocks_per_sm: Option<u32>,
    ) -> Self {
        let mut contender = Contender::of_variant(variant);
        contender.registers = Some(report.registers);
        contender.smem_bytes += u64::from(report.static_smem_bytes);
        contender.blocks_per_sm = blocks_per_sm;
        contender.compile_ms = Some(thousandths(compile_time.as_secs_f64() * 1e3));
        contender
    }
}

/// A thousandth is far below the noise, and reads back as the same number. What is smaller stays.
pub(super) fn thousandths(x: f64) -> f64 {
    let rounded = (x * 1e3).round() / 1e3;
    if rounded > 0.0 { rounded } else { x }
}
