//! What comes with the generator: the tile library's headers, and the declarations that kernels over them share.

include!(concat!(env!("OUT_DIR"), "/library.rs"));

/// The headers, as (path, text).
pub(crate) fn headers<'a>() -> impl Iterator<Item = (&'a str, &'a str)> {
    LIBRARY.iter().copied().filter(|(path, _)| !is_declaration(path))
}

/// The shared declaration of that path.
pub(crate) fn declaration(path: &str) -> Option<&'static str> {
    LIBRARY.iter().find(|(known, _)| *known == path && is_declaration(path)).map(|(_, text)| *text)
}

/// Whether a file of a kernel is a declaration that it may include: others are CUDA.
pub(crate) fn is_declaration(path: &str) -> bool {
    path.ends_with(".rs")
}
