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
#[non_exhaustive]
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

/// A line of a source, and where it comes from as `#line` directives say.
struct Line<'a> {
    file: &'a str,
    number: usize,
    text: &'a str,
}

/// The lines of a source that begins as `file`, without the directives.
fn lines<'a>(file: &'a str, source: &'a str) -> Vec<Line<'a>> {
    let (mut file, mut next) = (file, 1);
    let mut lines = Vec::new();
    for text in source.lines() {
        let named = text.strip_prefix("#line ").and_then(|rest| rest.split_once(' '));
        if let Some((number, name)) = named.and_then(|(number, name)| Some((number.parse().ok()?, name))) {
            (file, next) = (name.trim_matches('"'), number);
            continue;
        }
        lines.push(Line { file, number: next, text });
        next += 1;
    }
    lines
}

/// The first errors, each with its source lines: those of `file`, and of what it names by `#line`.
pub(super) fn excerpt(diagnostics: &[Diagnostic], file: &str, source: &str) -> String {
    let errors: Vec<_> = diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
    let (lines, mut text) = (lines(file, source), String::new());
    for error in errors.iter().take(SHOWN) {
        let _ = writeln!(text, "error: {}", error.message);
        let Some(name) = &error.file else { continue };
        let Some(at) = error.line else { continue };
        let _ = writeln!(text, "  --> {name}:{at}");
        let Some(place) = lines.iter().position(|line| line.file == name && line.number == at) else {
            continue;
        };
        for line in &lines[place.saturating_sub(CONTEXT)..(place + CONTEXT + 1).min(lines.len())] {
            let mark = if std::ptr::eq(line, &lines[place]) { '>' } else { ' ' };
            if line.file == name {
                let _ = writeln!(text, "{mark} {:>5} | {}", line.number, line.text);
            }
        }
    }
    if errors.len() > SHOWN {
        let _ = writeln!(text, "and {} more", errors.len() - SHOWN);
    }
    text.truncate(text.trim_end().len());
    text
}
