//! What a subcommand has to say.

use super::error::CliError;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::{self, ErrorKind, Write};
use tilewright::output::printable_lines;

/// The outcome of a subcommand, for people and for programs.
pub struct Report {
    /// For people.
    pub text: String,
    /// For programs (`--json`).
    pub json: Value,
    /// Whether the command succeeded: it decides the exit code.
    pub ok: bool,
    /// Whether standard output carries something else.
    aside: bool,
}

impl Report {
    /// A success.
    pub fn new(text: String, json: &impl Serialize) -> Self {
        let json = serde_json::to_value(json).expect("reports are plain data with text keys");
        Report { text, json, ok: true, aside: false }
    }

    /// The same, a failure unless `ok`.
    pub fn with_outcome(self, ok: bool) -> Self {
        Report { ok, ..self }
    }

    /// The same, on standard error if standard output carries what the command makes.
    pub fn aside(self, aside: bool) -> Self {
        Report { aside, ..self }
    }

    /// Writes the report. A reader that has seen enough (`| head`) is no failure.
    pub fn print(&self, json: bool) -> Result<(), CliError> {
        let text = if json { format!("{:#}", self.json) } else { printable_lines(&self.text).into_owned() };
        print(&text, self.aside)
    }
}

/// A failure for programs: `kind` is one word, `message` what people are told.
pub fn print_failure(kind: &str, message: &str, status: u8) {
    let json = json!({ "error": { "kind": kind, "message": message, "status": status } });
    // Where it cannot be written to, the status says it.
    let _ = print(&format!("{json:#}"), false);
}

fn print(text: &str, aside: bool) -> Result<(), CliError> {
    let text = format!("{}\n", text.trim_end());
    let written = match aside {
        true => io::stderr().write_all(text.as_bytes()),
        false => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        }
    };
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::Stdout(error)),
        _ => Ok(()),
    }
}
