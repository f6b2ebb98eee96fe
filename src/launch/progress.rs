//! What the tuner is doing, for a person who waits.

use crate::tune::Progress;
use indicatif::ProgressBar;

/// One line on standard error while a kernel is tuned; nothing where that is no terminal.
pub(super) struct ProgressLine<'a> {
    bar: ProgressBar,
    device: &'a str,
    kernel: &'a str,
}

impl<'a> ProgressLine<'a> {
    pub(super) fn new(device: &'a str, kernel: &'a str) -> Self {
        tracing::info!(device, kernel, "tuning");
        ProgressLine { bar: ProgressBar::new_spinner(), device, kernel }
    }

    pub(super) fn show(&self, progress: &Progress<'_>) {
        self.bar.set_message(progress.line(self.device, self.kernel));
        self.bar.tick();
    }
}

impl Drop for ProgressLine<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
