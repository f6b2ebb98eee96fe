//! What a race found, kept: every candidate by fingerprint, never by its place in a list.

use super::contender::{Contender, thousandths};
use super::{Entry, Finish, RaceResult, TuneKey};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// The form of the file. A record of another form counts as absent.
pub(crate) const SCHEMA: u32 = 1;

/// A candidate and how it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Timing {
    /// The candidate.
    pub candidate: Contender,
    /// How it did.
    pub outcome: Outcome,
}

/// How a candidate did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Outcome {
    /// It was timed.
    Timed {
        /// The median of one launch in microseconds, comparable with the rest of the record.
        median_us: f64,
        /// Rounds it took part in.
        rounds: u32,
        /// Whether it left early, as too slow.
        eliminated: bool,
    },
    /// It must not be used.
    Rejected {
        /// Why.
        reason: String,
        /// Its median, where it was timed before.
        median_us: Option<f64>,
    },
}

/// What is known of a kernel on a GPU for sizes of about the same: every candidate's time, and the winner.
///
/// All times of a record are comparable. Where one is added later, the winner is timed again beside it, and the new time
/// is restated in the record's own clock: multiplied by what the winner took then, divided by what it takes now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw")]
pub struct TuneRecord {
    schema: u32,
    key: TuneKey,
    winner: String,
    candidates: Vec<Timing>,
    /// Whether the kernel's check.rs, where it has one, was asked.
    #[serde(skip_serializing_if = "is_true")]
    checked: bool,
}

/// A record as read, unchecked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    schema: u32,
    key: TuneKey,
    winner: String,
    candidates: Vec<Timing>,
    #[serde(default = "yes")]
    checked: bool,
}

fn yes() -> bool {
    true
}

fn is_true(flag: &bool) -> bool {
    *flag
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// It is no record.
    #[error("not a tuning record: {0}; tuning makes it anew")]
    Json(#[from] serde_json::Error),
    /// It has another form.
    #[error("a tuning record of schema {found}, needed {SCHEMA}: it is made again by this version")]
    Schema {
        /// Its schema.
        found: u32,
    },
    /// It was made for something else.
    #[error("a tuning record of {found}, needed one of {needed}: was the file renamed?")]
    Key {
        /// Its kernel, GPU and sizes.
        found: String,
        /// Those needed.
        needed: String,
    },
    /// Two entries have one fingerprint.
    #[error("the tuning record lists {fingerprint} twice, needed once; tuning makes it anew")]
    Duplicate {
        /// The fingerprint.
        fingerprint: String,
    },
    /// A time that is none.
    #[error(
        "the tuning record gives {fingerprint} {found} µs, needed a positive number; tuning makes it anew"
    )]
    Time {
        /// The fingerprint.
        fingerprint: String,
        /// The time.
        found: f64,
    },
    /// The winner is not among those that were timed.
    #[error("the tuning record's winner {winner} is not among its timed candidates; tuning makes it anew")]
    Winner {
        /// The winner's fingerprint.
        winner: String,
    },
}

impl TuneRecord {
    /// The record of a race over `contenders`, with what was rejected before it: candidates that do not compile or
    /// that spill.
    ///
    /// # Errors
    /// [`RecordError`] when the race was over other candidates.
    #[doc(hidden)]
    pub fn new(
        key: TuneKey,
        contenders: Vec<Contender>,
        rejected: Vec<(Contender, String)>,
        race: &RaceResult,
    ) -> Result<Self, RecordError> {
        let timed = contenders.into_iter().filter_map(|candidate| {
            let entry = entry(race, &candidate.fingerprint)?;
            Some(Timing { candidate, outcome: outcome(entry, 1.0) })
        });
        let candidates = timed.chain(rejected.into_iter().map(rejection)).collect();
        let winner = race.winner().name.clone();
        TuneRecord { schema: SCHEMA, key, winner, candidates, checked: true }.consistent()
    }

    /// Adds candidates found missing by `plan`. `race` was over them and the incumbent; it is `None` when all of
    /// them were rejected before. The race's winner becomes the record's.
    ///
    /// If the incumbent failed in the race there is nothing to compare old times by: they are dropped, so that those
    /// candidates are missing next time and are timed against the new winner.
    pub(crate) fn merge(
        &mut self,
        contenders: Vec<Contender>,
        rejected: Vec<(Contender, String)>,
        race: Option<&RaceResult>,
    ) {
        let mut scale = 1.0;
        if let Some(race) = race {
            match self.scale(race) {
                Some(found) => scale = found,
                None => self.candidates.retain(|timing| matches!(timing.outcome, Outcome::Rejected { .. })),
            }
            self.winner.clone_from(&race.winner().name);
            for candidate in contenders {
                let Some(entry) = entry(race, &candidate.fingerprint) else { continue };
                self.put(Timing { candidate, outcome: outcome(entry, scale) });
            }
        }
        for timing in rejected.into_iter().map(rejection) {
            self.put(timing);
        }
    }

    /// What turns the race's times into the record's: the incumbent's time then, over its time now.
    fn scale(&self, race: &RaceResult) -> Option<f64> {
        let link = |timing: &Timing| match entry(race, &timing.candidate.fingerprint)?.finish {
            Finish::Timed { median_us, .. } => Some(timing.median_us()? / median_us),
            Finish::Failed { .. } => None,
        };
        self.get(&self.winner).and_then(link).or_else(|| self.candidates.iter().find_map(link))
    }

    fn put(&mut self, timing: Timing) {
        let fingerprint = &timing.candidate.fingerprint;
        match self.candidates.iter_mut().find(|known| known.candidate.fingerprint == *fingerprint) {
            Some(known) => *known = timing,
            None => self.candidates.push(timing),
        }
    }

    /// Rejects a candidate whose launch failed, keeping the reason, and gives the one to launch instead: among those of
    /// `all`, the fingerprints that this process can render, the next best. It becomes the winner if the failed one
    /// was.
    ///
    /// `None` when no other is left. Such a record counts as absent when it is read again, so that the next process
    /// tunes anew; do not write it over a better one.
    pub(crate) fn demote(&mut self, fingerprint: &str, reason: &str, all: &[&str]) -> Option<String> {
        for known in self.candidates.iter_mut().filter(|known| known.candidate.fingerprint == fingerprint) {
            let median_us = known.median_us();
            known.outcome = Outcome::Rejected { reason: reason.to_owned(), median_us };
        }
        let next = self.best_of(all).map(|best| best.candidate.fingerprint.clone());
        tracing::warn!(fingerprint, reason, ?next, "the recorded candidate cannot be launched");
        if self.winner == fingerprint
            && let Some(next) = &next
        {
            self.winner.clone_from(next);
        }
        next
    }

    /// The winner's entry; none in a record all of whose candidates were demoted.
    pub fn winner(&self) -> Option<&Timing> {
        self.get(&self.winner).filter(|timing| timing.median_us().is_some())
    }

    /// The fastest of `all`: the winner where it is one of them, else the one with the smallest median, those that
    /// stayed to the end of their race first.
    pub(crate) fn best_of(&self, all: &[&str]) -> Option<&Timing> {
        let among = |timing: &&Timing| all.contains(&timing.candidate.fingerprint.as_str());
        self.winner().filter(among).or_else(|| {
            let usable =
                self.candidates.iter().filter(among).filter_map(|timing| Some((rank(timing)?, timing)));
            let best = usable.min_by(|(a, _), (b, _)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
            best.map(|(_, timing)| timing)
        })
    }

    /// Those of `all` that the record knows nothing of, in the order given.
    pub(crate) fn missing<'a>(&self, all: &[&'a str]) -> Vec<&'a str> {
        all.iter().copied().filter(|fingerprint| self.get(fingerprint).is_none()).collect()
    }

    /// A candidate's entry.
    pub fn get(&self, fingerprint: &str) -> Option<&Timing> {
        self.candidates.iter().find(|timing| timing.candidate.fingerprint == fingerprint)
    }

    /// Whether the kernel's check.rs was asked about the candidates, or there is none. It cannot be where a kernel is tuned from its folder
    /// alone: a launch that can ask it does so before it goes by the record.
    pub fn is_checked(&self) -> bool {
        self.checked
    }

    pub(crate) fn set_checked(&mut self, checked: bool) {
        self.checked = checked;
    }

    /// What the record holds for.
    pub fn key(&self) -> &TuneKey {
        &self.key
    }

    /// Every candidate, the oldest entries first.
    pub fn candidates(&self) -> &[Timing] {
        &self.candidates
    }

    /// The record as JSON, for the cache.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings and finite numbers only: this cannot fail. Nothing is an unreadable record, which counts as absent.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// Reads a record and checks that it is one of `key`, of this schema, and consistent.
    ///
    /// # Errors
    /// [`RecordError`] says what is wrong with it.
    pub fn parse(json: &[u8], key: &TuneKey) -> Result<Self, RecordError> {
        /// Read first: what else is in the file depends on it.
        #[derive(Deserialize)]
        struct Header {
            schema: u32,
        }
        let Header { schema } = serde_json::from_slice(json)?;
        if schema != SCHEMA {
            return Err(RecordError::Schema { found: schema });
        }
        let Raw { schema, key: found, winner, candidates, checked } = serde_json::from_slice(json)?;
        let record = TuneRecord { schema, key: found, winner, candidates, checked }.consistent()?;
        if record.key != *key {
            let text = |key: &TuneKey| format!("{} on {}, {}", key.spec, key.device, key.bucket);
            return Err(RecordError::Key { found: text(&record.key), needed: text(key) });
        }
        Ok(record)
    }

    /// [`parse`](Self::parse), with whatever cannot be used counting as absent: that only costs another race.
    pub(crate) fn usable(json: &[u8], key: &TuneKey) -> Option<Self> {
        Self::parse(json, key)
            .inspect_err(|error| tracing::warn!(%error, file = key.file_name(), "tuning record not used"))
            .ok()
    }

    fn consistent(self) -> Result<Self, RecordError> {
        if self.schema != SCHEMA {
            return Err(RecordError::Schema { found: self.schema });
        }
        let mut seen = HashSet::new();
        for Timing { candidate, outcome } in &self.candidates {
            let fingerprint = || candidate.fingerprint.clone();
            if !seen.insert(&candidate.fingerprint) {
                return Err(RecordError::Duplicate { fingerprint: fingerprint() });
            }
            if let Outcome::Timed { median_us: found, .. } = *outcome
                && !(found.is_finite() && found > 0.0)
            {
                return Err(RecordError::Time { fingerprint: fingerprint(), found });
            }
        }
        match self.winner() {
            Some(_) => Ok(self),
            None => Err(RecordError::Winner { winner: self.winner }),
        }
    }
}

impl TryFrom<Raw> for TuneRecord {
    type Error = RecordError;

    fn try_from(Raw { schema, key, winner, candidates, checked }: Raw) -> Result<Self, RecordError> {
        TuneRecord { schema, key, winner, candidates, checked }.consistent()
    }
}

impl Timing {
    /// The median of one launch in microseconds, of a candidate that may be used.
    pub fn median_us(&self) -> Option<f64> {
        match self.outcome {
            Outcome::Timed { median_us, .. } => Some(median_us),
            Outcome::Rejected { .. } => None,
        }
    }
}

/// Smaller is better; none for the rejected.
fn rank(timing: &Timing) -> Option<(bool, f64)> {
    match timing.outcome {
        Outcome::Timed { median_us, eliminated, .. } => Some((eliminated, median_us)),
        Outcome::Rejected { .. } => None,
    }
}

fn entry<'a>(race: &'a RaceResult, fingerprint: &str) -> Option<&'a Entry> {
    race.entries().iter().find(|entry| entry.name == fingerprint)
}

fn rejection((candidate, reason): (Contender, String)) -> Timing {
    Timing { candidate, outcome: Outcome::Rejected { reason, median_us: None } }
}

fn outcome(entry: &Entry, scale: f64) -> Outcome {
    match &entry.finish {
        Finish::Timed { median_us, rounds, eliminated } => Outcome::Timed {
            median_us: thousandths(median_us * scale),
            rounds: *rounds,
            eliminated: *eliminated,
        },
        Finish::Failed { reason } => Outcome::Rejected { reason: reason.clone(), median_us: None },
    }
}
