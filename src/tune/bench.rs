//! What a race runs.

/// Candidates that can be checked and timed, in a fixed order: the declaration's.
pub trait Bench {
    /// How many candidates there are.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The fingerprint of candidate `i`, which the record knows it by.
    fn name(&self, i: usize) -> &str;

    /// Runs candidate `i` once and checks its outputs: against the first candidate's, and against what the
    /// kernel's `check.rs` computes.
    ///
    /// # Errors
    /// Why it must not win, as a sentence for people.
    fn check(&mut self, i: usize) -> Result<(), String>;

    /// The microseconds of one launch of candidate `i`: the time of `launches` launches back to back, divided by
    /// their number.
    ///
    /// # Errors
    /// Why it cannot be timed.
    fn time_us(&mut self, i: usize, launches: u32) -> Result<f64, String>;
}
