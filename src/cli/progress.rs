//! Progress, on standard error.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;
use tilewright::output::printable_lines;

/// A line on standard error; where that is closed nobody is there to read it.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable_lines(line));
}

/// A bar of `len` steps of `what`; it hides itself where standard error is no terminal.
pub fn bar(len: usize, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(len as u64).with_prefix(what);
    match ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg} ({elapsed})") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
