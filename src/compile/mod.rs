//! From CUDA text to a cubin, with NVRTC.
//!
//! A source is one self-contained file with one entry function, named like the source. [`Toolchain::compile`]
//! turns it into a [`Cubin`]: the machine code for one architecture and what ptxas said about it. [`compile_all`] does
//! the same for many sources on all cores.
//!
//! [`Toolchain::compile`]: crate::toolchain::Toolchain::compile

mod diagnostic;
mod elf;
mod embedded;
mod nvrtc;
mod report;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use rayon::prelude::*;
use serde::Serialize;

use crate::toolchain::Toolchain;

pub use diagnostic::Diagnostic;
pub use embedded::{EmbeddedCubin, embedded, register};
pub use nvrtc::OPTIONS;
pub use report::PtxasReport;

/// NVRTC's optimiser recurses over the program: the usual 2 MB of a worker's stack are not enough for a large
/// unrolled kernel. The memory is only reserved, not used.
const STACK_BYTES: usize = 64 << 20;

/// The machine code of one kernel for one architecture.
///
/// The driver runs it as it is: it comes from [`Toolchain::compile`], or from a cache that keeps what did, and the bytes cannot be
/// changed. Code of another origin is the caller's to answer for: [`Cubin::from_code`].
/// ```compile_fail,E0616
/// # fn of(mut cubin: tilewright::compile::Cubin) {
/// cubin.bytes = Vec::new();
/// # }
/// ```
///
/// [`Toolchain::compile`]: crate::toolchain::Toolchain::compile
#[derive(Clone, PartialEq, Eq)]
pub struct Cubin {
    /// The name of the kernel and of its entry function.
    pub name: String,
    /// The architecture it runs on, such as `sm_90a`.
    pub arch: String,
    /// The version of the NVRTC that made it: a driver loads the cubins of its own major version and of older ones.
    pub nvrtc: (i32, i32),
    pub(crate) bytes: Vec<u8>,
    /// Of the source that this was compiled from, where it is known: the cache keeps it under no other.
    pub(crate) source: Option<blake3::Hash>,
    /// The resources it takes, as ptxas reported them.
    pub report: PtxasReport,
    /// How long the compilation took.
    pub compile_time: Duration,
    /// What the compiler warned of, a warning each.
    pub warnings: Vec<String>,
    /// The whole log.
    pub log: String,
}

impl Cubin {
    /// Code that was compiled elsewhere, from `source`: its name, architecture and NVRTC, and the ELF file.
    ///
    /// # Safety
    /// The bytes are what that NVRTC made of that source for that architecture. The driver reads an ELF file without checking it, and a
    /// launch runs what is in it with the arguments that the source is declared to take.
    pub unsafe fn from_code(
        [name, arch]: [&str; 2],
        nvrtc: (i32, i32),
        source: &str,
        bytes: Vec<u8>,
        report: PtxasReport,
    ) -> Self {
        let source = Some(blake3::hash(source.as_bytes()));
        let (compile_time, warnings, log) = (Duration::ZERO, Vec::new(), String::new());
        let (name, arch) = (name.to_owned(), arch.to_owned());
        Cubin { name, arch, nvrtc, bytes, source, report, compile_time, warnings, log }
    }

    /// The ELF file that the driver loads.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The blake3 digest of the machine code (the sections `.text.*`), 16 digits of it: equal where the GPU runs the same
    /// instructions. None for a cubin without.
    pub fn code_digest(&self) -> Option<String> {
        let mut hasher = blake3::Hasher::new();
        let mut code = elf::sections(&self.bytes, ".text.").peekable();
        code.peek()?;
        code.for_each(|section| {
            hasher.update(section);
        });
        Some(hasher.finalize().to_hex()[..16].to_owned())
    }

    /// The version of the assembler that made the machine code, as it says itself: `13.0.88`.
    pub fn assembler(&self) -> Option<String> {
        let note = elf::sections(&self.bytes, ".note.nv.tkinfo").next()?;
        let text = String::from_utf8_lossy(note);
        let version = text.split(", V").nth(1)?;
        let end = version.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        Some(version[..end].to_owned())
    }

    /// Whether the bytes are an ELF file with nothing missing. The driver takes a pointer without a length, so a file
    /// cut short on its way through a disk must not reach it.
    pub fn is_whole(&self) -> bool {
        elf::is_whole(&self.bytes)
    }
}

impl fmt::Debug for Cubin {
    /// Everything but the bytes and the log, of which there are many.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cubin")
            .field("name", &self.name)
            .field("arch", &self.arch)
            .field("nvrtc", &self.nvrtc)
            .field("bytes", &self.bytes.len())
            .field("report", &self.report)
            .field("compile_time", &self.compile_time)
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

/// A source to compile.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CompileJob {
    /// The name of the source and of its entry function.
    pub name: String,
    /// The CUDA text.
    pub source: String,
    /// The architecture, such as `sm_90a`.
    pub arch: String,
}

/// A job that has ended, as [`compile_all`] tells of it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CompileResult<'a> {
    /// The job.
    pub job: &'a CompileJob,
    /// How it ended.
    pub result: &'a Result<Cubin, CompileError>,
}

/// Compiles the jobs in parallel on all cores. The answers are in the jobs' order; `on_done` is called as each job
/// ends, in any order and from any thread.
pub fn compile_all(
    toolchain: &Toolchain,
    jobs: Vec<CompileJob>,
    on_done: impl Fn(&CompileResult<'_>) + Sync,
) -> Vec<Result<Cubin, CompileError>> {
    let compile = |job: &CompileJob| {
        let result = toolchain.compile(&job.name, &job.source, &job.arch);
        on_done(&CompileResult { job, result: &result });
        result
    };
    in_parallel(&jobs, compile)
}

/// Calls `work` for every item on all cores, on threads whose stacks are deep enough for NVRTC; results keep the order.
pub(crate) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync + Send) -> Vec<R> {
    if items.is_empty() {
        return Vec::new();
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    let one_by_one = || items.iter().map(&work).collect();
    // A system that grants no more threads still compiles.
    let all = || match rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK_BYTES).build() {
        Ok(pool) => pool.install(|| items.par_iter().with_max_len(1).map(&work).collect()),
        Err(_) => one_by_one(),
    };
    // From a thread of its own: one of a caller's pool would take up other work of that pool while it waits, and that
    // work may wait for the same lock.
    std::thread::scope(|scope| {
        match std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, all) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => one_by_one(),
        }
    })
}

/// Why there is no cubin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// This NVRTC does not know the architecture.
    #[error(
        "the architecture `{arch}` is not one of NVRTC {}.{}: it compiles for {}. {}",
        version.0, version.1, supported.join(", "), arch_hint(*is_newer)
    )]
    UnsupportedArch {
        /// The architecture that was asked for.
        arch: String,
        /// What this NVRTC compiles for.
        supported: Vec<String>,
        /// NVRTC's version.
        version: (i32, i32),
        /// Whether it is newer than those: a newer NVRTC may know it.
        is_newer: bool,
    },
    /// The source has errors.
    #[error(transparent)]
    Source(Box<BrokenSource>),
    /// The source compiles but its entry function has another name.
    #[error(
        "`{name}` has no entry function of its name (`extern \"C\" __global__ void {name}(...)`, which a body writes as \
         TILEWRIGHT_KERNEL); it has {}",
        names(found)
    )]
    NoEntry {
        /// The name that was expected.
        name: String,
        /// The entry functions that are there.
        found: Vec<String>,
    },
    /// A name or a source holds a NUL byte.
    #[error("the {what} of `{name}` contains a NUL byte, which CUDA text cannot hold")]
    Nul {
        /// What holds it.
        what: &'static str,
        /// The source's name.
        name: String,
    },
    /// NVRTC itself failed.
    #[error("NVRTC's {call} failed for `{name}` ({arch}): {meaning} (code {code}){log}")]
    Nvrtc {
        /// The source's name.
        name: String,
        /// The architecture.
        arch: String,
        /// The function that failed.
        call: &'static str,
        /// Its result.
        code: i32,
        /// The result in words.
        meaning: String,
        /// The log, when there is one, from a new line on.
        log: String,
    },
}

/// A source that does not compile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` does not compile for {arch}:\n{excerpt}")]
#[non_exhaustive]
pub struct BrokenSource {
    /// The source's name.
    pub name: String,
    /// The architecture.
    pub arch: String,
    /// Every error and warning, in order.
    pub diagnostics: Vec<Diagnostic>,
    /// The first errors with the lines around them.
    pub excerpt: String,
    /// The whole log.
    pub log: String,
}

fn arch_hint(is_newer: bool) -> &'static str {
    match is_newer {
        true => "A newer NVRTC may know it: let `toolchain::install` bring one, or set TILEWRIGHT_NVRTC.",
        false => {
            "Architectures are written like `sm_80`, or `sm_90a` with the features of that architecture alone."
        }
    }
}

fn names(found: &[String]) -> String {
    match found {
        [] => "none".to_string(),
        found => found.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}

/// The severity of a diagnostic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Severity {
    /// No cubin comes of it.
    Error,
    /// A cubin comes all the same.
    Warning,
}
