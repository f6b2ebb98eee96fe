//! Text of a stranger's, made harmless.

use std::borrow::Cow;
use std::path::Path;

/// `text` with every character escaped that a terminal or a reader could take for something else: control characters,
/// line breaks, and marks that change the direction of what follows.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, is_harmful)
}

/// The same of text of several lines: line breaks and tabs stay.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_harmful(c) && !matches!(c, '\n' | '\t'))
}

/// The same of a JSON document, which stays the same: what is escaped lies within strings.
pub fn printable_json(document: &str) -> String {
    let mut safe = String::with_capacity(document.len());
    for c in document.chars() {
        match is_harmful(c) && c != '\n' {
            // None of them is beyond 16 bits.
            true => safe.extend(format!("\\u{:04x}", u32::from(c)).chars()),
            false => safe.push(c),
        }
    }
    safe
}

/// A path for programs, as serde writes it: bytes that are no text, for which JSON has no place, are replaced.
pub(crate) fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// A path to show in a message; an empty one is `''`.
pub fn shown(path: &Path) -> String {
    if path.as_os_str().is_empty() {
        return "''".to_owned();
    }
    printable(&path.to_string_lossy()).into_owned()
}

fn escaped(text: &str, harmful: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match harmful(c) {
            true => safe.extend(c.escape_default()),
            false => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_the_rest_is_not() {
        for (text, safe) in [
            ("forward_sm80 × 128 µs – ≤ ü 字 🙂 'a' \"b\" \\c", None),
            ("\x1b[2J\x1b]0;owned\x07", Some("\\u{1b}[2J\\u{1b}]0;owned\\u{7}")),
            ("a\nerror: b\r\tc\0", Some("a\\nerror: b\\r\\tc\\u{0}")),
            ("\u{9b}31m\u{7f}", Some("\\u{9b}31m\\u{7f}")),
            ("exe.\u{202e}txt\u{2066}\u{2028}", Some("exe.\\u{202e}txt\\u{2066}\\u{2028}")),
        ] {
            assert_eq!(printable(text), safe.unwrap_or(text));
        }
        assert_eq!(printable_lines("a\n\tb\r\x1b"), "a\n\tb\\r\\u{1b}");
        let value = serde_json::json!({ "a\u{202e}": ["\x1b\n\u{9b}", "ü\u{7f}"] });
        let document = printable_json(&format!("{value:#}"));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&document).unwrap(), value);
        assert_eq!(printable_lines(&document), document);
        assert_eq!(shown(Path::new("/tmp/a\nb")), "/tmp/a\\nb");
        assert_eq!(shown(Path::new("")), "''");
    }
}
