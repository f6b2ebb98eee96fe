//! `include "lib/rows.rs";`: sections that several declarations share.

use super::one_macro::{MAX_BYTES, the_macro};
use crate::error::{Error, INCLUDED_AT};
use crate::{library, limits};
use proc_macro2::Span;
use std::borrow::Cow;
use syn::parse::ParseStream;
use syn::{LitStr, Result, Token};

/// Files by their paths in the templates folder.
pub(super) type Files<'a> = &'a [(Cow<'static, str>, Cow<'static, str>)];

/// The texts that a declaration may include, and those that it does.
pub(super) struct Included<'a> {
    /// Of the kernel's folder and of the `lib` beside it; others are looked for in the tile library.
    files: Files<'a>,
    texts: Vec<Text<'a>>,
}

/// A text that was read.
struct Text<'a> {
    path: String,
    text: &'a str,
    /// What the positions in it say of their file.
    file: Option<String>,
    /// Where it is included.
    at: Span,
    /// Whether it is the author's to change: the tile library's is not.
    own: bool,
}

impl<'a> Included<'a> {
    pub(super) fn of(files: Files<'a>) -> Self {
        Included { files, texts: Vec::new() }
    }

    /// Reads `"path";` and gives the sections of that file, to be parsed.
    pub(super) fn sections(&mut self, input: ParseStream) -> Result<syn::Macro> {
        let literal: LitStr = input.parse().map_err(|error| {
            let message =
                "a shared declaration is included by its path in quotes: `include \"lib/rows.rs\";`";
            syn::Error::new(error.span(), message)
        })?;
        input.parse::<Token![;]>()?;
        let (path, at) = (literal.value(), literal.span());
        if self.texts.iter().any(|known| known.path == path) {
            return Err(syn::Error::new(at, format!("`{path}` is included already: keep one")));
        }
        let own = self.files.iter().find(|(known, _)| *known == path && library::is_declaration(known));
        let Some(text) = own.map(|(_, text)| &**text).or_else(|| library::declaration(&path)) else {
            let message = format!(
                "there is no `{path}`: a shared declaration is included by its folder and name, `<kernel>/x.rs` beside kernel.rs, \
                 `lib/x.rs` of all kernels or of the tile library"
            );
            return Err(syn::Error::new(at, message));
        };
        self.texts.push(Text { path: path.clone(), text, file: None, at, own: own.is_some() });
        let tokens = limits::tokens(text, MAX_BYTES).map_err(|error| {
            let file = error.span().file();
            if file == Span::call_site().file() {
                return syn::Error::new(at, format!("{path}: {error}"));
            }
            self.is_in(file);
            error
        })?;
        if let Some(first) = tokens.clone().into_iter().next() {
            self.is_in(first.span().file());
        }
        the_macro(tokens, "shared", &path)?
            .ok_or_else(|| syn::Error::new(at, format!("no `shared! {{ … }}` in `{path}`: write one")))
    }

    /// Notes what the positions in the last text say of their file.
    fn is_in(&mut self, file: String) {
        if let Some(last) = self.texts.last_mut() {
            last.file = Some(file);
        }
    }

    /// The error with its place, in the declaration `file` or in what that includes.
    pub(super) fn place(&self, file: &str, error: &syn::Error) -> Error {
        let within = error.span().file();
        let Some(text) = self.texts.iter().find(|text| text.file.as_ref() == Some(&within)) else {
            return Error::declaration(file, error);
        };
        if !text.own {
            let message = format!("in {} of the tile library: {error}", text.path);
            return Error::declaration(file, &syn::Error::new(text.at, message));
        }
        let at = text.at.start();
        let message = format!("{error}{INCLUDED_AT}{file}:{}:{})", at.line, at.column + 1);
        Error::declaration(&text.path, &syn::Error::new(error.span(), message))
    }

    /// The paths of what is included.
    pub(super) fn paths(&self) -> Vec<String> {
        self.texts.iter().map(|text| text.path.clone()).collect()
    }

    /// The hash of a declaration with all that it includes, however a checkout ends its lines.
    pub(super) fn hash(&self, declaration: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(declaration.replace('\r', "").as_bytes());
        for Text { path, text, .. } in &self.texts {
            for part in [path, &text.replace('\r', "")] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}
