//! What can go wrong between a declaration and a rendered source.

use std::fmt;
use std::path::{Path, PathBuf};

/// An error of the generator. Its `Debug` is its text: a `build.rs` whose `main` returns it prints what a person can read.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A declaration that does not parse or check. The position is that of the offending token.
    #[error("{file}:{line}:{column}: {message}")]
    Declaration {
        /// The file's name as given by the caller.
        file: String,
        /// 1-based line.
        line: usize,
        /// 1-based column.
        column: usize,
        /// What was found and what was needed.
        message: String,
    },
    /// A body template that does not parse or render.
    #[error("template {template}: {message}")]
    Template {
        /// The template's path inside the templates folder.
        template: String,
        /// The template engine's report.
        message: String,
    },
    /// A spec that the declaration does not allow.
    #[error("kernel `{kernel}`: {message}")]
    Spec {
        /// The kernel.
        kernel: String,
        /// What was found, what was needed.
        message: String,
    },
    /// No body of the kernel runs on the architecture.
    #[error("kernel `{kernel}` has no body for {arch}: it has bodies for {families}")]
    NoBody {
        /// The kernel.
        kernel: String,
        /// The architecture asked for.
        arch: String,
        /// The families there are.
        families: String,
    },
    /// Every schedule was rejected.
    #[error("kernel `{kernel}` has no schedule that fits {arch}: {reasons}")]
    NoCandidate {
        /// The kernel.
        kernel: String,
        /// The architecture asked for.
        arch: String,
        /// Why, schedule by schedule.
        reasons: String,
    },
    /// An architecture nobody has heard of.
    #[error("unknown architecture `{found}`: use one of {known}")]
    UnknownArch {
        /// The text given.
        found: String,
        /// The architectures there are.
        known: String,
    },
    /// A file that cannot be read or written.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// `reading` or `writing`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A folder among kernels that is none.
    #[error(
        "{} has no kernel.rs: declare the kernel there, or move the folder elsewhere (headers for all kernels go into `lib`)",
        path.display()
    )]
    NoDeclaration {
        /// The folder.
        path: PathBuf,
    },
    /// A folder given to [`emit`](crate::emit()) that holds no kernel.
    #[error("{} holds no kernel: make a folder in it with a kernel.rs and its bodies", path.display())]
    NoKernels {
        /// The folder.
        path: PathBuf,
    },
}

/// What stands before the place of an `include`, at the end of a message about what is included.
pub(crate) const INCLUDED_AT: &str = " (included at ";

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// The error with its file seen from where `folder`, which holds the kernels, is seen from.
    pub fn within(self, folder: &Path) -> Self {
        let place = |file: &str| folder.join(file).to_string_lossy().into_owned();
        match self {
            Error::Declaration { file, line, column, message } => {
                // What an `include` names says where that stands.
                let message = match message.rsplit_once(INCLUDED_AT) {
                    Some((said, at)) => format!("{said}{INCLUDED_AT}{}", place(at)),
                    None => message,
                };
                Error::Declaration { file: place(&file), line, column, message }
            }
            Error::Template { template, message } => {
                let whole = place(&template);
                let message = message.replace(&format!("--> {template}:"), &format!("--> {whole}:"));
                Error::Template { template: whole, message }
            }
            other => other,
        }
    }

    /// Places a `syn` error in its file.
    pub(crate) fn declaration(file: &str, error: &syn::Error) -> Self {
        let start = error.span().start();
        Error::Declaration {
            file: file.to_owned(),
            line: start.line,
            column: start.column + 1,
            message: error.to_string(),
        }
    }
}
