//! How much is read of a text: every parser of it, syn's above all, goes down by recursion.
//!
//! A stack that overflows ends the process, so depth is bounded before anything goes down: brackets by counting them, and
//! whatever else can nest (`- - -x`, `A<A<A<…`, `return return …`, `else if … else if …`, `a + a + …`) by the tokens that stand
//! between two separators, together with those around them. What is within the bounds is read on a stack that has room for
//! the worst of it, whatever the thread's own is.

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use syn::{Error, Result};

/// Brackets may nest this deep.
const MAX_BRACKETS: usize = 64;

/// Tokens from one `;` or `,` to the next, and from there outwards: no nesting has more levels.
const MAX_RUN: usize = 2000;

/// Characters of a number. The exact digits of the smallest `f32` are 112, after 38 zeros.
const MAX_DIGITS: usize = 256;

/// An unoptimised build needs some 35 KiB for the dearest token, the `&` of a type. Only what is used takes memory.
const STACK: usize = 128 << 20;

/// Runs `work` on a stack for the deepest syntax that [`check`] lets through.
pub fn with_room<R>(work: impl FnOnce() -> R) -> R {
    stacker::grow(STACK, work)
}

/// As [`with_room`], on a thread that ends with it: proc-macro2 keeps every text that a thread has read, for the places in it, for
/// as long as the thread lives. `None` where there is no thread to be had. No place outlives it, so `work` tells of them itself.
pub(crate) fn apart<R: Send>(work: impl FnOnce() -> R + Send) -> Option<R> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("tilewright parser".into()).stack_size(STACK);
        thread.spawn_scoped(scope, work).ok()?.join().ok()
    })
}

/// Refuses tokens that are too deep to be parsed.
///
/// # Errors
/// At the bracket, the token or the number that is too much.
pub fn check(tokens: &TokenStream) -> Result<()> {
    walk(tokens.clone(), 0, 0)
}

/// Refuses a text of more than `max_bytes`.
///
/// # Errors
/// At `at`.
pub fn check_size(text: &str, max_bytes: usize, at: Span) -> Result<()> {
    match text.len() {
        found if found > max_bytes => {
            Err(Error::new(at, format!("the text has {found} bytes: at most {max_bytes} are read")))
        }
        _ => Ok(()),
    }
}

/// The tokens of a text of at most `max_bytes`. Brackets are counted among them, for comments and strings have others; neither
/// reading nor dropping tokens takes stack for those.
pub(crate) fn tokens(text: &str, max_bytes: usize) -> Result<TokenStream> {
    check_size(text, max_bytes, Span::call_site())?;
    let tokens = text.parse::<TokenStream>().map_err(|error| {
        // syn's own message for this is about token streams, which an author has not heard of.
        Error::new(error.span(), no_token(text, error.span()))
    })?;
    check(&tokens)?;
    Ok(tokens)
}

/// Why no token begins there.
fn no_token(text: &str, at: Span) -> String {
    let line = text.split('\n').nth(at.start().line.saturating_sub(1)).unwrap_or_default();
    let rest = line.char_indices().nth(at.start().column).map_or("", |(start, _)| &line[start..]);
    match rest.chars().next() {
        Some('/') => "a comment from here on has no end: write `*/`".into(),
        Some('(' | ')' | '[' | ']' | '{' | '}' | '"' | '\'') | None => {
            "a bracket, a brace or a quote from here on has no partner".into()
        }
        Some(found) if found.is_ascii_alphanumeric() => {
            "what begins here is no name, number or text of Rust's".into()
        }
        Some(found) => {
            let found = found.escape_debug();
            format!(
                "`{found}` begins nothing in Rust: write operators and quotes with the characters of ASCII"
            )
        }
    }
}

fn too_many_brackets() -> String {
    format!("brackets may nest {MAX_BRACKETS} deep: name a part of what is inside with `let`")
}

/// `nested` brackets are open around `tokens`, with `outer` tokens before them.
fn walk(tokens: TokenStream, nested: usize, outer: usize) -> Result<()> {
    if nested > MAX_BRACKETS {
        return Err(Error::new_spanned(tokens, too_many_brackets()));
    }
    // A comma between angle brackets, or between the parameters of a closure, separates nothing that has ended.
    let (mut run, mut angles, mut closure) = (outer, 0usize, false);
    // Before an attribute's `#`.
    let (mut previous, mut attribute) = (' ', None);
    for token in tokens {
        let before = run;
        run += 1;
        let (mut punct, span) = (' ', token.span());
        match token {
            TokenTree::Group(group) => {
                // Attributes and doc comments stand beside each other, however many there are.
                if let (Some(before), Delimiter::Bracket) = (attribute, group.delimiter()) {
                    run = before;
                }
                walk(group.stream(), nested + 1, run)?;
            }
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                if text.starts_with(|first: char| first.is_ascii_digit()) && text.len() > MAX_DIGITS {
                    let message = format!("a number may have {MAX_DIGITS} digits, found {}", text.len());
                    return Err(Error::new(span, message));
                }
            }
            TokenTree::Punct(found) => {
                punct = found.as_char();
                match punct {
                    ';' => (run, angles, closure) = (outer, 0, false),
                    ',' if angles == 0 && !closure => run = outer,
                    '<' => angles += 1,
                    '>' if !matches!(previous, '-' | '=') => angles = angles.saturating_sub(1),
                    '|' => closure = true,
                    _ => {}
                }
            }
            TokenTree::Ident(_) => {}
        }
        attribute = match punct {
            '#' => Some(before),
            '!' => attribute,
            _ => None,
        };
        previous = punct;
        if run > MAX_RUN {
            let message =
                format!("more than {MAX_RUN} tokens without a `;` or a `,`: name parts of this with `let`");
            return Err(Error::new(span, message));
        }
    }
    Ok(())
}
