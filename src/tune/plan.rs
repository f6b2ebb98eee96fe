//! What a record leaves to do.

use super::TuneRecord;

/// What has to be done before the fastest of the candidates is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing: this one.
    Use {
        /// The winner's place among the candidates.
        winner: usize,
    },
    /// Compile and race these.
    Time {
        /// Their places among the candidates, ascending, the incumbent's included.
        candidates: Vec<usize>,
        /// The place of the candidate that the new ones have to beat: merge the result into the
        /// record. `None` when there is none, and the result is a new record.
        incumbent: Option<usize>,
    },
}

/// Decides what to time, given the fingerprints of all candidates in the declaration's order and the record, if any.
///
/// A candidate that the record does not know is timed beside the incumbent alone, never with all the others. What the
/// record rejected stays rejected. Entries of candidates that are no more are left alone: another version of the
/// library, sharing the cache, may need them.
pub(crate) fn plan(record: Option<&TuneRecord>, all: &[&str]) -> Plan {
    let place = |fingerprint: &str| all.iter().position(|known| *known == fingerprint);
    let known = record.and_then(|record| {
        let incumbent = place(&record.best_of(all)?.candidate.fingerprint)?;
        Some((record, incumbent))
    });
    let Some((record, incumbent)) = known else {
        return Plan::Time { candidates: (0..all.len()).collect(), incumbent: None };
    };
    let missing = record.missing(all);
    if missing.is_empty() {
        return Plan::Use { winner: incumbent };
    }
    let candidates = (0..all.len()).filter(|&i| i == incumbent || missing.contains(&all[i])).collect();
    Plan::Time { candidates, incumbent: Some(incumbent) }
}
