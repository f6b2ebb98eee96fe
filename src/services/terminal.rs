//! Progress on a terminal.

use super::{FirstUse, Progress};
use indicatif::ProgressBar;
use std::sync::{Mutex, PoisonError};

/// For [`ServicesBuilder::on_first_use`](super::ServicesBuilder::on_first_use): a line on standard error that says what is waited for,
/// and goes when it is done; nothing where standard error is no terminal.
pub fn line_on_stderr() -> impl Fn(&FirstUse<'_>) + Send + Sync {
    let line: Mutex<Option<ProgressBar>> = Mutex::default();
    move |step| {
        let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
        match step.progress {
            Progress::Done => line.take().iter().for_each(ProgressBar::finish_and_clear),
            _ => {
                let bar = line.get_or_insert_with(ProgressBar::new_spinner);
                bar.set_message(step.to_string());
                bar.tick();
            }
        }
    }
}
