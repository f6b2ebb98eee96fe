//! A record for people: why this schedule, and why not the others.

use super::{Outcome, TuneRecord};
use crate::codegen::Rejection;
use serde::Serialize;

/// One candidate of the explanation.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Row {
    /// Whether it is the winner.
    pub winner: bool,
    /// The variant's fingerprint; none for one that was never rendered.
    pub fingerprint: Option<String>,
    /// How it is computed: `sm80 warps=4 stages=2`.
    pub schedule: String,
    /// Registers a thread.
    pub registers: Option<u32>,
    /// Shared memory of a block in bytes.
    pub smem_bytes: Option<u64>,
    /// Blocks that fit a multiprocessor at once.
    pub blocks_per_sm: Option<u32>,
    /// How long NVRTC took.
    pub compile_ms: Option<f64>,
    /// The median of one launch in microseconds.
    pub median_us: Option<f64>,
    /// The median over the winner's.
    pub relative: Option<f64>,
    /// Whether it left the race early, as too slow.
    pub eliminated: bool,
    /// Why it must not be used.
    pub rejected: Option<String>,
}

impl TuneRecord {
    /// Every candidate: the winner, the others from fast to slow, the rejected, and those of `pruned`, the
    /// candidates that were rejected before they were rendered.
    pub fn rows(&self, pruned: &[Rejection]) -> Vec<Row> {
        let best = self.winner().and_then(|winner| winner.median_us());
        let mut rows: Vec<Row> = self
            .candidates()
            .iter()
            .map(|timing| {
                let candidate = &timing.candidate;
                let (median_us, eliminated, rejected) = match &timing.outcome {
                    Outcome::Timed { median_us, eliminated, .. } => (Some(*median_us), *eliminated, None),
                    Outcome::Rejected { reason, median_us } => (*median_us, false, Some(reason.clone())),
                };
                Row {
                    winner: self
                        .winner()
                        .is_some_and(|winner| winner.candidate.fingerprint == candidate.fingerprint),
                    fingerprint: Some(candidate.fingerprint.clone()),
                    schedule: candidate.schedule.to_string(),
                    registers: candidate.registers,
                    smem_bytes: Some(candidate.smem_bytes),
                    blocks_per_sm: candidate.blocks_per_sm,
                    compile_ms: candidate.compile_ms,
                    median_us,
                    relative: median_us.zip(best).map(|(median, best)| median / best),
                    eliminated,
                    rejected,
                }
            })
            .collect();
        rows.extend(pruned.iter().map(|rejection| Row {
            winner: false,
            fingerprint: None,
            schedule: rejection.schedule.to_string(),
            registers: None,
            smem_bytes: None,
            blocks_per_sm: None,
            compile_ms: None,
            median_us: None,
            relative: None,
            eliminated: false,
            rejected: Some(rejection.reason.to_string()),
        }));
        // Stable: what is equal keeps the order of the declaration.
        rows.sort_by(|a, b| {
            let key = |row: &Row| (!row.winner, row.rejected.is_some(), row.fingerprint.is_none());
            let median = |row: &Row| row.median_us.unwrap_or(f64::INFINITY);
            key(a).cmp(&key(b)).then(median(a).total_cmp(&median(b)))
        });
        rows
    }

    /// The rows as JSON, with the key.
    pub fn explain_json(&self, pruned: &[Rejection]) -> serde_json::Value {
        serde_json::json!({ "key": self.key(), "candidates": self.rows(pruned) })
    }
}
