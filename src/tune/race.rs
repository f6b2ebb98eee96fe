//! The race: from candidates to a winner. Given the times, everything here is deterministic.
//!
//! Why it looks as it does:
//! * **Rounds, not runs.** Every candidate still in the race is timed once a round, so that a clock that slows as the
//!   chip warms up slows all of them. Every other round goes backwards: what drifts within a round evens out over two.
//! * **The median.** A preempted sample is an outlier that a mean would keep.
//! * **Early elimination** compares a candidate's *fastest* sample, the warm-up's included, with the leader's median.
//!   Whatever disturbs a GPU makes it slower, so a candidate as fast as the leader would have to be disturbed by more
//!   than the cut in every one of its samples to be lost. The cut starts at [`first_cut`](RaceSettings::first_cut) and
//!   shrinks with the square root of the rounds, as the error of the leader's median does.
//! * **Only those that stay to the end can win**: they have a sample of every round. The time of one that left early
//!   is kept, restated by the winner's samples of the same rounds, so that it too can be compared.

use super::{Bench, Progress};

/// How long and how carefully to race. The defaults take two seconds at most on top of the checks.
#[derive(Debug, Clone, PartialEq)]
pub struct RaceSettings {
    /// Launches are batched until a sample is about this long. Events resolve half a microsecond, and a single short
    /// launch shows the launch itself; longer samples mean fewer of them in the budget.
    pub sample_us: f64,
    /// Launches of a sample at most: a queue of the driver's holds about a thousand before it makes the host wait.
    pub max_launches: u32,
    /// Each candidate runs at least this long, and at least twice, before its first round: modules are loaded lazily
    /// and an idle GPU has low clocks. More would be wasted on candidates that leave after a round.
    pub warm_up_us: f64,
    /// Rounds before a sole survivor is believed. Its time is what users see.
    pub min_rounds: u32,
    /// Rounds at most. The median's error falls with their square root: 100 rounds resolve 0.4 % at a noise of 3 %.
    pub max_rounds: u32,
    /// GPU time for warm-up and rounds together. A round that would exceed it is not begun, but for the first:
    /// without one there is no choice. A small budget chooses worse, never wrongly.
    pub budget_ms: f64,
    /// After one round: how many times the leader's median the fastest sample of a candidate may be.
    pub first_cut: f64,
    /// The tightest cut. Lower saves time on close races and trusts the clocks more.
    pub last_cut: f64,
    /// Medians within this share of the best are ties, won by the candidate declared first: without it the choice
    /// between equals would change from run to run.
    pub tie: f64,
}

impl Default for RaceSettings {
    fn default() -> Self {
        RaceSettings {
            sample_us: 200.0,
            max_launches: 512,
            warm_up_us: 2_000.0,
            min_rounds: 5,
            max_rounds: 100,
            budget_ms: 2_000.0,
            first_cut: 1.3,
            last_cut: 1.03,
            tie: 0.005,
        }
    }
}

impl RaceSettings {
    fn cut(&self, rounds: u32) -> f64 {
        (1.0 + (self.first_cut - 1.0) / f64::from(rounds.max(1)).sqrt()).max(self.last_cut)
    }

    fn launches(&self, launch_us: f64) -> u32 {
        // A float outside u32 saturates.
        ((self.sample_us / launch_us).ceil() as u32).clamp(1, self.max_launches.max(1))
    }
}

/// How a race ended. Entries are in the bench's order.
#[derive(Debug, Clone, PartialEq)]
pub struct RaceResult {
    entries: Vec<Entry>,
    winner: usize,
    rounds: u32,
    spent_ms: f64,
}

impl RaceResult {
    /// Every candidate, in the bench's order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The winner.
    pub fn winner(&self) -> &Entry {
        &self.entries[self.winner]
    }

    /// The winner's place in the bench.
    pub fn winner_index(&self) -> usize {
        self.winner
    }

    /// Rounds that were run.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// GPU time of the warm-up and the rounds, in milliseconds.
    pub fn spent_ms(&self) -> f64 {
        self.spent_ms
    }
}

/// One candidate's race.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its fingerprint.
    pub name: String,
    /// How it did.
    pub finish: Finish,
}

/// How a candidate did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Finish {
    /// It was timed.
    Timed {
        /// The median of one launch in microseconds, comparable with the other entries.
        median_us: f64,
        /// Rounds it took part in.
        rounds: u32,
        /// Whether it was left out early, as too slow.
        eliminated: bool,
    },
    /// A check or a timing failed.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Why a race has no winner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RaceError {
    /// There was nothing to time.
    #[error("there is no candidate to time, needed at least one: every one was rejected before")]
    Empty,
    /// Every candidate failed its check or its timing.
    #[error(
        "all {} candidates failed, needed one that runs and whose outputs agree:\n{}\nreport this with the list above",
        failures.len(),
        failures.iter().map(|(name, reason)| format!("  {name}: {reason}")).collect::<Vec<_>>().join("\n")
    )]
    AllFailed {
        /// Fingerprints and reasons, in the bench's order.
        failures: Vec<(String, String)>,
    },
}

/// Checks every candidate, then times those that pass until one is known to be the fastest.
///
/// # Errors
/// [`RaceError`] when no candidate is left; a candidate that fails alone is dropped, with the reason in its entry.
pub fn race(
    bench: &mut dyn Bench,
    settings: &RaceSettings,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<RaceResult, RaceError> {
    if bench.is_empty() {
        return Err(RaceError::Empty);
    }
    let lanes = (0..bench.len()).map(|_| Lane::default()).collect();
    let mut race = Race { bench, settings, lanes, spent_us: 0.0 };
    race.check(progress);
    race.warm_up(progress);
    let rounds = race.run(progress);
    race.finish(rounds)
}

/// One candidate on its way.
#[derive(Default)]
struct Lane {
    launches: u32,
    /// One a round.
    samples: Vec<f64>,
    fastest: f64,
    state: State,
}

#[derive(Default, PartialEq)]
enum State {
    #[default]
    Racing,
    Eliminated,
    Failed(String),
}

struct Race<'a> {
    bench: &'a mut dyn Bench,
    settings: &'a RaceSettings,
    lanes: Vec<Lane>,
    spent_us: f64,
}

impl Race<'_> {
    fn racing(&self) -> Vec<usize> {
        (0..self.lanes.len()).filter(|&i| self.lanes[i].state == State::Racing).collect()
    }

    fn fail(&mut self, i: usize, reason: String) {
        tracing::debug!(candidate = self.bench.name(i), reason, "dropped");
        self.lanes[i].state = State::Failed(reason);
    }

    fn check(&mut self, progress: &mut dyn FnMut(&Progress<'_>)) {
        let of = self.lanes.len();
        for i in 0..of {
            progress(&Progress::Checking { candidate: i + 1, of, name: self.bench.name(i) });
            if let Err(reason) = self.bench.check(i) {
                self.fail(i, format!("check: {reason}"));
            }
        }
    }

    fn warm_up(&mut self, progress: &mut dyn FnMut(&Progress<'_>)) {
        let racing = self.racing();
        for (place, &i) in racing.iter().enumerate() {
            let name = self.bench.name(i);
            progress(&Progress::WarmingUp { candidate: place + 1, of: racing.len(), name });
            (self.lanes[i].launches, self.lanes[i].fastest) = (1, f64::INFINITY);
            let before = self.spent_us;
            // The first sample tells how many launches the others take; being cold, it is no time to compare.
            for sample in 0..32 {
                if sample >= 2 && self.spent_us - before >= self.settings.warm_up_us {
                    break;
                }
                let Some(time) = self.time(i) else { break };
                self.lanes[i].launches = self.settings.launches(time);
                if sample > 0 {
                    self.lanes[i].fastest = self.lanes[i].fastest.min(time);
                }
            }
        }
    }

    /// One sample, or none when the candidate is dropped for it.
    fn time(&mut self, i: usize) -> Option<f64> {
        let launches = self.lanes[i].launches;
        match self.bench.time_us(i, launches) {
            Ok(time) if time.is_finite() && time > 0.0 => {
                self.spent_us += time * f64::from(launches);
                Some(time)
            }
            Ok(time) => {
                self.fail(i, format!("timing: the timer said {time} µs, needed a positive number"));
                None
            }
            Err(reason) => {
                self.fail(i, format!("timing: {reason}"));
                None
            }
        }
    }

    /// Rounds until the race is decided, or the budget or the rounds run out. Returns how many were run.
    fn run(&mut self, progress: &mut dyn FnMut(&Progress<'_>)) -> u32 {
        let RaceSettings { max_rounds, min_rounds, budget_ms, .. } = *self.settings;
        for round in 1..=max_rounds.max(1) {
            let mut racing = self.racing();
            let decided = racing.is_empty() || (racing.len() == 1 && round > min_rounds.max(1));
            if decided || (round > 1 && self.spent_us + self.round_us(&racing) > budget_ms * 1e3) {
                return round - 1;
            }
            progress(&Progress::Timing { round, of: max_rounds, left: racing.len() });
            if round % 2 == 0 {
                racing.reverse();
            }
            for i in racing {
                if let Some(time) = self.time(i) {
                    let lane = &mut self.lanes[i];
                    lane.samples.push(time);
                    lane.fastest = lane.fastest.min(time);
                }
            }
            self.eliminate(round);
        }
        max_rounds.max(1)
    }

    /// What the next round will take.
    fn round_us(&self, racing: &[usize]) -> f64 {
        racing.iter().map(|&i| median(&self.lanes[i].samples) * f64::from(self.lanes[i].launches)).sum()
    }

    fn eliminate(&mut self, round: u32) {
        let racing = self.racing();
        let leader = racing.iter().map(|&i| median(&self.lanes[i].samples)).fold(f64::INFINITY, f64::min);
        let limit = leader * self.settings.cut(round);
        for i in racing {
            if self.lanes[i].fastest > limit {
                tracing::trace!(candidate = self.bench.name(i), round, "too slow");
                self.lanes[i].state = State::Eliminated;
            }
        }
    }

    fn finish(self, rounds: u32) -> Result<RaceResult, RaceError> {
        let finalists = self.racing();
        let medians: Vec<f64> = self.lanes.iter().map(|lane| median(&lane.samples)).collect();
        let best = finalists.iter().map(|&i| medians[i]).fold(f64::INFINITY, f64::min);
        let tied = best * (1.0 + self.settings.tie);
        let Some(winner) = finalists.into_iter().find(|&i| medians[i] <= tied) else {
            return Err(RaceError::AllFailed { failures: self.failures() });
        };
        let finish = |i: usize| {
            let lane = &self.lanes[i];
            let of_winner = median(&self.lanes[winner].samples[..lane.samples.len()]);
            match &lane.state {
                State::Failed(reason) => Finish::Failed { reason: reason.clone() },
                state => Finish::Timed {
                    median_us: medians[i] * (medians[winner] / of_winner),
                    rounds: lane.samples.len() as u32,
                    eliminated: *state == State::Eliminated,
                },
            }
        };
        let entries: Vec<Entry> = (0..self.lanes.len())
            .map(|i| Entry { name: self.bench.name(i).to_owned(), finish: finish(i) })
            .collect();
        let spent_ms = self.spent_us / 1e3;
        tracing::debug!(
            winner = entries[winner].name,
            median_us = medians[winner],
            rounds,
            spent_ms,
            "tuned"
        );
        Ok(RaceResult { entries, winner, rounds, spent_ms })
    }

    fn failures(&self) -> Vec<(String, String)> {
        let reason = |lane: &Lane| match &lane.state {
            State::Failed(reason) => reason.clone(),
            _ => "not timed".to_owned(),
        };
        (0..self.lanes.len()).map(|i| (self.bench.name(i).to_owned(), reason(&self.lanes[i]))).collect()
    }
}

/// The middle sample, or the mean of the two in the middle; infinite without samples.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::INFINITY,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}
