//! What a subcommand has to say.

use super::error::CliError;
use super::files::standard_output_is_closed;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{self, ErrorKind, Write};
use tilewright::output::{printable_json, printable_lines};

/// The outcome of a subcommand, for people and for programs.
pub struct Report {
    /// For people.
    pub text: String,
    /// For programs (`--json`).
    pub json: Value,
    /// Whether the command succeeded: it decides the exit code.
    pub ok: bool,
}

impl Report {
    /// A success.
    pub fn new(text: String, json: &impl Serialize) -> Self {
        let json = serde_json::to_value(json).expect("reports are plain data with text keys");
        Report { text, json, ok: true }
    }

    /// The same, a failure unless `ok`.
    pub fn with_outcome(self, ok: bool) -> Self {
        Report { ok, ..self }
    }

    /// Writes the report. A reader that has seen enough (`| head`) is no failure.
    pub fn print(&self, json: bool, to: Stream) -> Result<(), CliError> {
        let text = match json {
            true => document(&self.json),
            false => printable_lines(&self.text).into_owned(),
        };
        unless_unread(to.write(&text))
    }
}

/// What could not be written, unless its reader has seen enough.
pub fn unless_unread(written: io::Result<()>) -> Result<(), CliError> {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::Stdout(error)),
        _ => Ok(()),
    }
}

/// A failure for programs: `kind` is one word, `message` what people are told. Where `to` takes nothing it goes to standard
/// error, and where that takes nothing either, the status says it.
pub fn print_failure(kind: &str, message: &str, status: u8, to: Stream) {
    let text = document(&json!({ "error": { "kind": kind, "message": message, "status": status } }));
    let _ = to.write(&text).or_else(|_| Stream::StandardError.write(&text));
}

fn document(json: &Value) -> String {
    printable_json(&format!("{json:#}"))
}

/// Where a command says what came of it.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    StandardOutput,
    /// Standard output carries what the command makes.
    StandardError,
}

impl Stream {
    /// Writes a text and ends its last line.
    pub fn write(self, text: &str) -> io::Result<()> {
        let text = format!("{}\n", text.trim_end());
        match self {
            Stream::StandardError => io::stderr().write_all(text.as_bytes()),
            Stream::StandardOutput if standard_output_is_closed() => Err(io::Error::other("it is closed")),
            Stream::StandardOutput => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
            }
        }
    }
}
