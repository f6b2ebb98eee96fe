//! Progress, on standard error.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, Write};
use tilewright::output::{printable, printable_lines};

/// A line on standard error; where that is closed nobody is there to read it.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{}", printable_lines(line));
}

/// Standard error for the library's warnings, a line each, in which names come from anywhere.
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        io::stderr().write_all(format!("{}\n", printable(line.trim_end_matches('\n'))).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A bar of `len` steps of `what`; it hides itself where standard error is no terminal.
pub fn bar(len: usize, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(len as u64).with_prefix(what);
    match ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg} ({elapsed})") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
