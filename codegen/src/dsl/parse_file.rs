//! From the text of a `kernel.rs` to a checked [`Kernel`].

use super::include::{Files, Included};
use super::one_macro::{MAX_BYTES, the_macro};
use super::parse::parse_kernel;
use super::{Kernel, check};
use crate::error::Error;
use crate::limits;
use crate::source::KernelSource;
use proc_macro2::Span;
use syn::Result;
use syn::parse::ParseStream;

impl Kernel {
    /// Parses and checks the text of a `kernel.rs`, which holds one `kernel! { … }`. What it includes is the tile library's.
    ///
    /// # Errors
    /// [`Error::Declaration`] with the position of the offending token; `file` is the name it is reported under.
    pub fn parse(file: &str, text: &str) -> std::result::Result<Kernel, Error> {
        parse_and_check(file, text, &[])
    }

    /// Parses and checks the declaration of a kernel's folder. What it includes lies in that folder, in the `lib` beside it or in
    /// the tile library.
    ///
    /// # Errors
    /// [`Error::Declaration`] with the position of the offending token, in `<kernel>/kernel.rs` or in a file that it includes.
    pub fn of(source: &KernelSource) -> std::result::Result<Kernel, Error> {
        parse_and_check(&format!("{}/kernel.rs", source.name), &source.declaration, &source.files)
    }
}

fn parse_and_check(file: &str, text: &str, files: Files<'_>) -> std::result::Result<Kernel, Error> {
    let parse = || {
        let mut included = Included::of(files);
        parse_file(text, &mut included).map_err(|error| included.place(file, &error))
    };
    limits::apart(parse).unwrap_or_else(|| limits::with_room(parse))
}

fn parse_file(text: &str, included: &mut Included<'_>) -> Result<Kernel> {
    let tokens = limits::tokens(text, MAX_BYTES)?;
    let Some(kernel) = the_macro(tokens, "kernel", "a kernel.rs")? else {
        return Err(syn::Error::new(Span::call_site(), "no `kernel! { … }` in the file: declare one"));
    };
    let (mut kernel, spans) = kernel.parse_body_with(|input: ParseStream| parse_kernel(input, included))?;
    check::check(&kernel, &spans)?;
    kernel.declaration = included.hash(text);
    kernel.includes = included.paths();
    Ok(kernel)
}
