//! How far a tuner is.

use std::fmt;

/// A step of the first use of a kernel on a GPU, which takes seconds. As text it is a line for people: `first use on NVIDIA H200:
/// checking forward, 3 of 8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FirstUse<'a> {
    /// The GPU's name.
    pub device: &'a str,
    /// The kernel's name.
    pub kernel: &'a str,
    /// How far it is.
    pub progress: Progress<'a>,
}

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
    /// The kernel is chosen, or an error is on its way to the caller.
    Done,
}

impl<'a> FirstUse<'a> {
    pub(crate) fn new(device: &'a str, kernel: &'a str, progress: Progress<'a>) -> Self {
        FirstUse { device, kernel, progress }
    }
}

impl fmt::Display for FirstUse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FirstUse { device, kernel, progress } = self;
        write!(f, "first use on {device}: ")?;
        match progress {
            Progress::Waiting { holder } => {
                write!(f, "waiting for {holder}, which tunes on it, then {kernel}")
            }
            Progress::Compiling { done, of } => write!(f, "compiling {kernel}, {done} of {of}"),
            Progress::Checking { candidate, of, .. } => write!(f, "checking {kernel}, {candidate} of {of}"),
            Progress::WarmingUp { candidate, of, .. } => {
                write!(f, "warming up {kernel}, {candidate} of {of}")
            }
            Progress::Timing { round, left, .. } => {
                let noun = if *left == 1 { "candidate" } else { "candidates" };
                write!(f, "tuning {kernel}, round {round}, {left} {noun} left")
            }
            Progress::Done => write!(f, "{kernel} is ready"),
        }
    }
}
