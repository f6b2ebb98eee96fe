//! What a subcommand has to say.

use serde::Serialize;
use serde_json::Value;

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
}
