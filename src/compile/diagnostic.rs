//! Errors and warnings in the compiler's log, and the source lines they speak of.

use std::fmt::Write;

use serde::Serialize;

use super::Severity;

/// How many errors an excerpt shows: those after the first few usually follow from them.
const SHOWN: usize = 3;
/// How many source lines are shown before and after the line at fault.
const CONTEXT: usize = 2;

/// One error or warning of the compiler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file it is in, as the compiler calls it; none when it comes from ptxas.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: Option<usize>,
    /// What the compiler says.
    pub message: String,
}

/// Reads the errors and warnings of a log.
pub(super) fn read(log: &str) -> Vec<Diagnostic> {
    log.lines().filter_map(|line| front_end(line).or_else(|| assembler(line))).collect()
}

/// `name.cu(3): error: text`, `name.cu(3): warning #177-D: text`.
fn front_end(line: &str) -> Option<Diagnostic> {
    let (place, rest) = line.split_once("): ")?;
    let (file, number) = place.rsplit_once('(')?;
    let number = number.parse().ok()?;
    let (kind, message) = rest.split_once(": ")?;
    let severity = match kind {
        _ if kind.contains("error") => Severity::Error,
        _ if kind.starts_with("warning") => Severity::Warning,
        _ => return None,
    };
    Some(Diagnostic {
        severity,
        file: Some(file.to_string()),
        line: Some(number),
        message: message.to_string(),
    })
}

/// `ptxas ..., line 25; error   : text`, `ptxas fatal   : text`, `ptxas warning : text`, and the remarks about lost
/// performance that ptxas files as information.
fn assembler(line: &str) -> Option<Diagnostic> {
    let (head, message) = line.strip_prefix("ptxas")?.split_once(" : ")?;
    let kind = head.rsplit(';').next().unwrap_or(head).trim();
    let severity = match kind {
        "error" | "fatal" => Severity::Error,
        "warning" => Severity::Warning,
        "info" if message.contains("Performance") => Severity::Warning,
        _ => return None,
    };
    // A position is one in the PTX, which nobody has seen: it is no position in the source.
    Some(Diagnostic { severity, file: None, line: None, message: format!("ptxas: {}", message.trim()) })
}

/// The first errors, each with its source lines when it is in `file`.
pub(super) fn excerpt(diagnostics: &[Diagnostic], file: &str, source: &str) -> String {
    let errors: Vec<_> = diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
    let mut text = String::new();
    for error in errors.iter().take(SHOWN) {
        let _ = writeln!(text, "error: {}", error.message);
        let Some(name) = &error.file else { continue };
        let Some(at) = error.line else { continue };
        let _ = writeln!(text, "  --> {name}:{at}");
        if name == file {
            let first = at.saturating_sub(CONTEXT).max(1);
            for (number, line) in source.lines().enumerate().skip(first - 1).take(at + CONTEXT + 1 - first) {
                let mark = if number + 1 == at { '>' } else { ' ' };
                let _ = writeln!(text, "{mark} {:>5} | {line}", number + 1);
            }
        }
    }
    if errors.len() > SHOWN {
        let _ = writeln!(text, "and {} more", errors.len() - SHOWN);
    }
    text.truncate(text.trim_end().len());
    text
}
