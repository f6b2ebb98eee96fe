//! For a `build.rs`: kernels compiled into the program, so that where it runs no NVRTC is needed.
//!
//! [`tilewright_codegen::emit`](crate::codegen::emit()) makes bindings and needs no CUDA. [`Emit`] does the same and, with NVRTC on
//! the machine that builds, compiles chosen kernels for chosen architectures:
//!
//! ```no_run
//! // build.rs, with `tilewright` among the build-dependencies
//! use tilewright::build::Emit;
//! use tilewright::codegen::{Arch, DType};
//!
//! fn main() -> Result<(), tilewright::Error> {
//!     Emit::new("kernels/")
//!         .ahead_of_time("rms_norm", &[("T", DType::F16.into()), ("D", 128.into())], &[Arch::Sm90a])
//!         .run()
//! }
//! ```
//!
//! The program then takes in `tilewright_ahead.rs` beside its bindings and registers it once:
//!
//! ```ignore
//! include!(concat!(env!("OUT_DIR"), "/tilewright_ahead.rs"));
//! tilewright::compile::register(AHEAD);
//! ```

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codegen::{self, Arch, Candidate, Generator, KernelSource, KernelSpec, Value, Variant};
use crate::compile::{CompileJob, Cubin, PtxasReport, compile_all};
use crate::output::Output;
use crate::toolchain::{CUDA_VARIABLES, DATA_VARIABLE, NVRTC_VARIABLE, Toolchain};
use crate::{Error, kernels};

/// The generated file that lists the cubins.
const LIST: &str = "tilewright_ahead.rs";

/// What a `build.rs` makes: bindings, and cubins.
#[derive(Debug, Default)]
pub struct Emit {
    folder: Option<PathBuf>,
    wanted: Vec<Wanted>,
    shipped: Vec<Arch>,
    every_schedule: bool,
}

#[derive(Debug)]
struct Wanted {
    kernel: String,
    values: Vec<(String, Value)>,
    archs: Vec<Arch>,
}

/// A variant and what became of it.
type Compiled = (Variant, Cubin);

/// A kernel to compile for an architecture, and its candidates in the order of preference.
struct Search {
    generator: Arc<Generator>,
    arch: Arch,
    candidates: std::vec::IntoIter<Candidate>,
}

impl Emit {
    /// Bindings of every kernel in a folder, as [`codegen::emit`](codegen::emit()) makes them. The folder is relative to the
    /// crate.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        Emit { folder: Some(folder.as_ref().to_owned()), ..Emit::default() }
    }

    /// No kernels of one's own: only cubins of those that Tilewright ships.
    pub fn only_shipped() -> Self {
        Emit::default()
    }

    /// Compiles a kernel with these values for these architectures: the preferred schedule, and where that spills
    /// registers the next. The kernel is one of the folder's or, if none there has the name, one that Tilewright ships.
    pub fn ahead_of_time(mut self, kernel: &str, values: &[(&str, Value)], archs: &[Arch]) -> Self {
        let values = values.iter().map(|(name, value)| (name.to_string(), *value)).collect();
        self.wanted.push(Wanted { kernel: kernel.to_owned(), values, archs: archs.to_vec() });
        self
    }

    /// Compiles what Tilewright ships for these architectures: all that an attention takes whose dtype and head dimension
    /// are among [the shipped ones](codegen::Generator::shipped_specs).
    pub fn shipped(mut self, archs: &[Arch]) -> Self {
        self.shipped.extend_from_slice(archs);
        self
    }

    /// Compiles every schedule, not the preferred alone, so that the program can use a tuning record, or tune.
    pub fn every_schedule(mut self) -> Self {
        self.every_schedule = true;
        self
    }

    /// Writes `$OUT_DIR/tilewright.rs` and `$OUT_DIR/tilewright_ahead.rs`, and the cubins beside them.
    ///
    /// # Errors
    /// [`Error::Codegen`] for a mistake in a declaration or a template, an unknown kernel, or a value that it does not
    /// take; [`Error::Toolchain`] without NVRTC; [`Error::Compile`]; [`Error::Spills`] when every schedule of a kernel
    /// spills.
    pub fn run(self) -> Result<(), Error> {
        if let Some(folder) = &self.folder {
            codegen::emit(folder)?;
        }
        let variables = [NVRTC_VARIABLE, DATA_VARIABLE].into_iter().chain(CUDA_VARIABLES);
        variables.for_each(|name| println!("cargo::rerun-if-env-changed={name}"));
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        let root = variable("CARGO_MANIFEST_DIR").unwrap_or_default();
        let out = variable("OUT_DIR").unwrap_or_else(|| PathBuf::from("."));
        self.compile_into(&root, &out)
    }

    /// Compiles what is wanted into `out`. The folder of kernels is relative to `root`.
    fn compile_into(&self, root: &Path, out: &Path) -> Result<(), Error> {
        let mut searches = self.searches(root)?;
        let mut list = String::from(
            "/// Kernels compiled at build time: hand them to `tilewright::compile::register`.\n\
             pub static AHEAD: &[::tilewright::compile::EmbeddedCubin] = &[\n",
        );
        let mut seen = Vec::new();
        // Without anything to compile there is no need of NVRTC.
        if !searches.is_empty() {
            let toolchain = Toolchain::find()?;
            while !searches.is_empty() {
                let (done, left) = self.round(&toolchain, searches)?;
                for (variant, cubin) in done {
                    let id = (variant.fingerprint.clone(), cubin.arch.clone());
                    if !seen.contains(&id) {
                        entry(&mut list, &variant, &cubin, out)?;
                        seen.push(id);
                    }
                }
                searches = left;
            }
        }
        write(&out.join(LIST), (list + "];\n").as_bytes())
    }

    fn searches(&self, root: &Path) -> Result<Vec<Search>, Error> {
        let own = match &self.folder {
            Some(folder) if !self.wanted.is_empty() => KernelSource::read_all(&root.join(folder))?,
            _ => Vec::new(),
        };
        let mut searches = Vec::new();
        for Wanted { kernel, values, archs } in &self.wanted {
            let mut all = own.iter().chain(kernels::ALL.iter().copied());
            let Some(source) = all.find(|source| source.name == *kernel) else {
                let known: Vec<&str> =
                    own.iter().chain(kernels::ALL.iter().copied()).map(|source| &*source.name).collect();
                let message = format!("there is no such kernel: use one of {}", known.join(", "));
                return Err(codegen::Error::Spec { kernel: kernel.clone(), message }.into());
            };
            let generator = Arc::new(Generator::new(source)?);
            let values: Vec<(&str, Value)> =
                values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            let spec = Arc::new(generator.spec(&values)?);
            for &arch in archs {
                searches.push(Search::new(&generator, &spec, arch)?);
            }
        }
        for source in kernels::ALL.iter().filter(|_| !self.shipped.is_empty()) {
            let generator = Arc::new(Generator::new(source)?);
            for spec in generator.shipped_specs()? {
                for &arch in &self.shipped {
                    match Search::new(&generator, &spec, arch) {
                        Ok(search) => searches.push(search),
                        // Not every shipped spec is one for every architecture.
                        Err(Error::Codegen(
                            codegen::Error::NoBody { .. } | codegen::Error::NoCandidate { .. },
                        )) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(searches)
    }

    /// Compiles the next candidate of each search, or all of them. What came of it, and the searches that have nothing to
    /// show yet.
    ///
    /// Cubins that spill are kept: a loader that goes through the candidates in their order sees that, as it would see it
    /// of one that it compiles.
    fn round(
        &self,
        toolchain: &Toolchain,
        mut searches: Vec<Search>,
    ) -> Result<(Vec<Compiled>, Vec<Search>), Error> {
        let (mut variants, mut owners) = (Vec::new(), Vec::new());
        for (owner, search) in searches.iter_mut().enumerate() {
            let count = if self.every_schedule { usize::MAX } else { 1 };
            let before = variants.len();
            for candidate in search.candidates.by_ref().take(count) {
                variants.push(search.generator.render(&candidate)?);
                owners.push(owner);
            }
            if variants.len() == before {
                let kernel = search.generator.kernel().name.clone();
                return Err(Error::Spills { kernel, arch: search.arch.to_string() });
            }
        }
        let jobs = variants.iter().zip(&owners).map(|(variant, &owner)| CompileJob {
            name: variant.name.clone(),
            source: variant.source.clone(),
            arch: searches[owner].arch.name().to_owned(),
        });
        let cubins = compile_all(toolchain, jobs.collect(), |_| {});
        let (mut done, mut found) = (Vec::new(), vec![false; searches.len()]);
        for ((variant, owner), cubin) in variants.into_iter().zip(owners).zip(cubins) {
            let cubin = cubin?;
            found[owner] |= !cubin.report.spills();
            done.push((variant, cubin));
        }
        let mut found = found.into_iter();
        searches.retain(|_| !found.next().unwrap_or(true));
        Ok((done, searches))
    }
}

impl Search {
    fn new(generator: &Arc<Generator>, spec: &Arc<KernelSpec>, arch: Arch) -> Result<Self, Error> {
        let candidates = generator.candidates(spec, arch)?.accepted.into_iter();
        Ok(Search { generator: generator.clone(), arch, candidates })
    }
}

/// Writes a cubin, and adds it to the list.
fn entry(list: &mut String, variant: &Variant, cubin: &Cubin, out: &Path) -> Result<(), Error> {
    let file = format!("{}-{}.cubin", variant.name, cubin.arch);
    write(&out.join(&file), &cubin.bytes)?;
    let PtxasReport {
        registers,
        spill_store_bytes,
        spill_load_bytes,
        stack_bytes,
        static_smem_bytes,
        barriers,
    } = cubin.report;
    let (name, fingerprint, arch, nvrtc) = (&variant.name, &variant.fingerprint, &cubin.arch, cubin.nvrtc);
    let path = format!("/{file}");
    // Writing to a string does not fail.
    let _ = write!(
        list,
        "    // SAFETY: `tilewright::build` had NVRTC make the file of this very variant.\n    unsafe {{\n        \
         ::tilewright::compile::EmbeddedCubin::new(\n            [{name:?}, {fingerprint:?}, {arch:?}],\n            {nvrtc:?},\n            \
         ::tilewright::compile::PtxasReport {{\n                registers: {registers},\n                \
         spill_store_bytes: {spill_store_bytes},\n                spill_load_bytes: {spill_load_bytes},\n                \
         stack_bytes: {stack_bytes},\n                static_smem_bytes: {static_smem_bytes},\n                \
         barriers: {barriers},\n            }},\n            include_bytes!(concat!(env!(\"OUT_DIR\"), {path:?})),\n        )\n    }},\n"
    );
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| codegen::Error::Io { action: "writing", path: path.to_owned(), source };
    Ok(Output::open(path).and_then(|output| output.write(bytes)).map_err(failed)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codegen::DType;
    use std::fs;

    const EXAMPLE: &str = "examples/custom-kernel";
    const VALUES: [(&str, Value); 2] = [("T", Value::DType(DType::Bf16)), ("D", Value::Int(128))];

    fn emitted(emit: &Emit) -> Result<(tempfile::TempDir, String), Error> {
        let out = tempfile::tempdir().expect("a folder");
        emit.compile_into(&Path::new(env!("CARGO_MANIFEST_DIR")).join(EXAMPLE), out.path())?;
        let list = fs::read_to_string(out.path().join(LIST)).expect("the list");
        Ok((out, list))
    }

    #[test]
    fn nothing_to_compile_needs_no_nvrtc() {
        let (_, list) = emitted(&Emit::new("kernels/")).unwrap();
        assert!(list.ends_with("= &[\n];\n"), "{list}");
    }

    #[test]
    fn mistakes_are_told_before_anything_is_compiled() {
        let fails = |emit: Emit| emitted(&emit).expect_err("a mistake").to_string();
        let error = fails(Emit::new("kernels/").ahead_of_time("layer_norm", &VALUES, &[Arch::Sm80]));
        assert!(error.contains("`layer_norm`") && error.contains("rms_norm, backward_kv"), "{error}");
        let values = [("T", DType::Bf16.into()), ("D", 96.into())];
        let error = fails(Emit::new("kernels/").ahead_of_time("rms_norm", &values, &[Arch::Sm80]));
        assert!(error.contains("D = 96 is not supported"), "{error}");
        assert!(matches!(
            emitted(&Emit::new("no kernels/").ahead_of_time("forward", &[], &[])),
            Err(Error::Codegen(codegen::Error::Io { .. }))
        ));
    }
}
