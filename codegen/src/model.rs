//! The analytic model: which candidate to expect to be the fastest before any is timed.
//!
//! It decides what is used where nothing may be timed, and what is compiled at all where there are very many. It knows
//! four things, the first that differs decides:
//!
//! 1. **Family.** A body written for the architecture beats one for an older.
//! 2. **Occupancy**, through the declaration's `prefer`: only the author knows how many blocks hide each other's waits
//!    (`CTAS_PER_SM` fit; of the grid there are `GRID_PER_SM` for each multiprocessor, so more cannot help).
//! 3. **Waves.** Blocks run in waves of (multiprocessors × blocks that fit one). The last wave is rarely full: the
//!    share of the places that are busy over all waves is the share of the rate that is left. Differences under 5 % are
//!    none: real blocks do not march in step.
//! 4. **Bytes in flight**, blocks that fit times shared memory: with what is above alike, larger or deeper steps pay
//!    for their barriers with more bytes each.

use crate::arch::{Arch, Limits};
use crate::budget::{Candidate, preference};
use crate::dsl::{Body, Kernel};
use crate::spec::KernelSpec;
use std::cmp::Reverse;
use std::collections::HashMap;

/// The GPU to rank for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// What a block and a multiprocessor may use.
    pub limits: Limits,
    /// Multiprocessors.
    pub sm_count: i64,
}

/// The places of `candidates` in the model's order, the one expected to be the fastest first. Equals keep their order.
pub(crate) fn rank(
    kernel: &Kernel,
    candidates: &[&Candidate],
    machine: &Machine,
    dims: &[(&str, i64)],
) -> Vec<usize> {
    let mut places: Vec<usize> = (0..candidates.len()).collect();
    places.sort_by_cached_key(|&place| {
        let candidate = candidates[place];
        let body = kernel.bodies.iter().find(|body| body.family == candidate.schedule.family);
        let fit = candidate.budget.ctas_per_sm(&machine.limits).max(1);
        let blocks = body.and_then(|body| grid_blocks(kernel, body, candidate, dims));
        let sms = machine.sm_count.max(1);
        let per_sm = blocks.map(|blocks| div_ceil(blocks, sms));
        let preference = body
            .and_then(|body| preference(body, &|name| candidate.constant(name), fit, per_sm).ok())
            .unwrap_or(i64::MIN);
        let busy = blocks.map_or(0, |blocks| busy_twentieths(blocks, sms.saturating_mul(fit)));
        // Without a grid the declaration's order stands.
        let in_flight =
            per_sm.map_or(0, |per_sm| fit.min(per_sm).saturating_mul(candidate.budget.smem_bytes));
        Reverse((candidate.schedule.family, preference, busy, in_flight))
    });
    places
}

/// How many twentieths of the places are busy, over all waves.
fn busy_twentieths(blocks: i64, places: i64) -> i64 {
    let places = places.max(1);
    let offered = i128::from(div_ceil(blocks, places)) * i128::from(places);
    // At most 20, for no grid is larger than the places of its waves.
    (20 * i128::from(blocks) / offered.max(1)) as i64
}

/// Of a `blocks` that is no more than `i64` has, however large.
fn div_ceil(blocks: i64, by: i64) -> i64 {
    blocks / by + i64::from(blocks % by > 0)
}

/// Blocks of the grid, where the dimensions given determine it.
fn grid_blocks(kernel: &Kernel, body: &Body, candidate: &Candidate, dims: &[(&str, i64)]) -> Option<i64> {
    let constant = |name: &str| candidate.constant(name);
    let known = with_derived(kernel, &constant, dims);
    let value_of = |name: &str| known.get(name).copied().or_else(|| constant(name));
    body.launch.grid.iter().try_fold(1i64, |blocks, axis| blocks.checked_mul(axis.eval(&value_of).ok()?))
}

/// Dimensions and those derived from them, as far as they are known.
fn with_derived<'a>(
    kernel: &'a Kernel,
    constant: &dyn Fn(&str) -> Option<i64>,
    dims: &[(&'a str, i64)],
) -> HashMap<&'a str, i64> {
    let mut known: HashMap<&str, i64> = dims.iter().copied().collect();
    for derived in &kernel.derived {
        let value = derived.value.eval(&|name| known.get(name).copied().or_else(|| constant(name)));
        if let Ok(value) = value {
            known.insert(&derived.name, value);
        }
    }
    known
}

/// Whether a body that runs on the GPU says that an optional argument is worth making for the dimensions. Where they do not
/// determine it, it is not.
pub(crate) fn is_worth(
    kernel: &Kernel,
    arg: &str,
    spec: &KernelSpec,
    (arch, machine): (Arch, &Machine),
    dims: &[(&str, i64)],
) -> bool {
    let constant = |name: &str| spec.int(name);
    let known = with_derived(kernel, &constant, dims);
    let value_of = |name: &str| match name {
        "SM_COUNT" => Some(machine.sm_count),
        _ => known.get(name).copied().or_else(|| constant(name)),
    };
    let bodies = kernel.bodies.iter().filter(|body| arch.runs(body.family));
    let mut worth = bodies.flat_map(|body| &body.worth).filter(|worth| worth.arg == arg);
    worth.any(|worth| worth.condition.eval(&value_of) == Ok(1))
}
