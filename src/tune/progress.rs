//! How far a tuner is.

/// A step of a tuner, told to its caller as the step begins. Candidates are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// Another process tunes on this GPU.
    Waiting {
        /// Who, in words.
        holder: &'a str,
    },
    /// Candidates are compiled.
    Compiling {
        /// How many are done.
        done: usize,
        /// Of how many.
        of: usize,
    },
    /// A candidate's outputs are checked.
    Checking {
        /// The candidate.
        candidate: usize,
        /// Of how many.
        of: usize,
        /// Its fingerprint.
        name: &'a str,
    },
    /// A candidate runs until its clocks and caches are warm.
    WarmingUp {
        /// The candidate.
        candidate: usize,
        /// Of how many.
        of: usize,
        /// Its fingerprint.
        name: &'a str,
    },
    /// A round of timings.
    Timing {
        /// The round, from 1.
        round: u32,
        /// Rounds there are at most; most races end before.
        of: u32,
        /// Candidates still in the race.
        left: usize,
    },
}

impl Progress<'_> {
    /// A line for people: `first use on NVIDIA H200: checking forward, 3 of 8`.
    pub fn line(&self, device: &str, kernel: &str) -> String {
        let step = match self {
            Progress::Waiting { holder } => format!("waiting for {holder}, which tunes on it, then {kernel}"),
            Progress::Compiling { done, of } => format!("compiling {kernel}, {done} of {of}"),
            Progress::Checking { candidate, of, .. } => format!("checking {kernel}, {candidate} of {of}"),
            Progress::WarmingUp { candidate, of, .. } => format!("warming up {kernel}, {candidate} of {of}"),
            Progress::Timing { round, left, .. } => {
                let noun = if *left == 1 { "candidate" } else { "candidates" };
                format!("tuning {kernel}, round {round}, {left} {noun} left")
            }
        };
        format!("first use on {device}: {step}")
    }
}
