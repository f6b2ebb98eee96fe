//! Writing generated files: a user's bindings at build time, and this repository's `generated/`.

use crate::bindings::Paths;
use crate::constants::{self, Constants};
use crate::error::Error;
use crate::generator::Generator;
use crate::library;
use crate::source::{CHECK, KernelSource};
use crate::variant::Variant;
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// For a `build.rs`: reads every kernel of `dir` and writes their bindings to `$OUT_DIR/tilewright.rs`.
///
/// Each kernel becomes a module with `SOURCE`, `Params` and `Args`; bring them in with
/// `include!(concat!(env!("OUT_DIR"), "/tilewright.rs"));`. `dir` is relative to the crate.
///
/// # Errors
/// The first mistake found in a declaration or template, with its position; [`Error::Io`] when a file cannot be read or
/// written; [`Error::NoKernels`] when `dir` has no kernel.
pub fn emit(dir: impl AsRef<Path>) -> Result<(), Error> {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let given = dir.as_ref();
    let dir = root.join(given);
    println!("cargo::rerun-if-changed={}", dir.display());
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_else(|| PathBuf::from("."));
    let mut text = String::new();
    for source in KernelSource::read_all(&dir)? {
        let checked = || {
            let generator = Generator::new(&source)?;
            // Rendering what would ship finds mistakes in templates now, not at the first launch.
            generator.shipped()?;
            Ok(generator)
        };
        let generator = checked().map_err(|error: Error| error.within(given))?;
        let module = bindings_of(
            &source,
            &generator,
            &|path| dir.join(path).to_string_lossy().into_owned(),
            Constants::Here,
        );
        let doc = first_line(&generator);
        write!(text, "#[doc = {doc:?}]\npub mod {} {{\n{module}}}\n", source.name)
            .expect("writing to a string");
    }
    write(&out.join("tilewright.rs"), &text)
}

/// The bindings of one kernel as [`generated`] writes them, with its files included by their paths in the templates folder.
///
/// # Errors
/// As [`Generator::new`].
pub fn bindings(source: &KernelSource) -> Result<String, Error> {
    Ok(bindings_of(source, &Generator::new(source)?, &str::to_owned, Constants::Here))
}

/// Everything in `generated/`: file names (inside that folder) and their texts, in a fixed order.
///
/// `templates` is the templates folder, seen from the generated one as `../templates`.
///
/// # Errors
/// As [`emit`].
pub fn generated(templates: &Path) -> Result<Vec<(String, String)>, Error> {
    let mut files = Vec::new();
    let mut root = String::from(HEADER);
    root += "//! Bindings of the shipped kernels, one module each.\n\n";
    let mut all = String::from(
        "\n/// The files of every shipped kernel.\npub static ALL: &[&::tilewright::codegen::KernelSource] = &[\n",
    );
    let (mut manifest, mut kernels) = (Vec::new(), Vec::new());
    for source in KernelSource::read_all(templates)? {
        let generator = Generator::new(&source)?;
        if source.name == SPECS {
            let message = format!(
                "the module `{SPECS}` has the constants of all kernels: give the kernel another name"
            );
            return Err(Error::Spec { kernel: SPECS.to_owned(), message });
        }
        let doc = first_line(&generator);
        writeln!(root, "#[doc = {doc:?}]\npub mod {};", source.name).expect("writing to a string");
        writeln!(all, "    &{}::SOURCE,", source.name).expect("writing to a string");
        let module =
            bindings_of(&source, &generator, &|path| format!("../templates/{path}"), Constants::InSpecs);
        files.push((format!("{}.rs", source.name), format!("{HEADER}{module}")));
        for variant in generator.shipped()? {
            manifest.push(ManifestEntry::of(&variant));
            files.push((format!("sources/{}.cu", variant.name), variant.source));
        }
        kernels.push(generator);
    }
    writeln!(
        root,
        "#[doc = \"What the kernels are specialised for, and their constants.\"]\npub mod {SPECS};"
    )
    .expect("writing to a string");
    let specs = constants::module(kernels.iter().map(Generator::kernel));
    files.push((format!("{SPECS}.rs"), format!("{HEADER}{specs}")));
    files.push(("mod.rs".into(), root + &all + "];\n"));
    let json = serde_json::to_string_pretty(&manifest).expect("the manifest is plain data");
    files.push(("manifest.json".into(), json + "\n"));
    files.sort();
    Ok(files)
}

/// How a generated folder compares with what the generator makes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Files that are missing or have another text.
    pub stale: Vec<String>,
    /// Files the generator does not make.
    pub extra: Vec<String>,
}

impl Difference {
    /// Whether the folder is exactly what the generator makes.
    pub fn is_empty(&self) -> bool {
        self.stale.is_empty() && self.extra.is_empty()
    }
}

/// Brings a generated folder up to date and says what differed; with `check` only says it.
///
/// # Errors
/// As [`emit`].
pub fn sync(templates: &Path, out: &Path, check: bool) -> Result<Difference, Error> {
    sync_with(templates, out, check, |path, text| std::fs::write(path, text))
}

/// The same with another way to write a file.
///
/// # Errors
/// As [`sync`].
pub fn sync_with(
    templates: &Path,
    out: &Path,
    check: bool,
    write: impl Fn(&Path, &str) -> std::io::Result<()>,
) -> Result<Difference, Error> {
    let files = generated(templates)?;
    let mut difference = Difference::default();
    for (name, text) in &files {
        let path = out.join(name);
        // Reading a pipe would wait for its other end.
        if path.is_file() && std::fs::read_to_string(&path).is_ok_and(|found| found == *text) {
            continue;
        }
        difference.stale.push(name.clone());
        if !check {
            let folder = path.parent().unwrap_or(out);
            std::fs::create_dir_all(folder).map_err(|source| Error::Io {
                action: "creating",
                path: folder.to_owned(),
                source,
            })?;
            write(&path, text).map_err(|source| Error::Io { action: "writing", path, source })?;
        }
    }
    for folder in ["", "sources"] {
        let Ok(entries) = std::fs::read_dir(out.join(folder)) else { continue };
        for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
            let name = Path::new(folder).join(entry.file_name()).to_string_lossy().into_owned();
            if files.iter().any(|(known, _)| *known == name) || !is_generated(&entry.path()) {
                continue;
            }
            if !check {
                let path = entry.path();
                std::fs::remove_file(&path).map_err(|source| Error::Io {
                    action: "removing",
                    path,
                    source,
                })?;
            }
            difference.extra.push(name);
        }
    }
    difference.extra.sort();
    Ok(difference)
}

/// Whether a file says of itself that it was generated: others in the folder are not the generator's to remove.
fn is_generated(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.starts_with(HEADER)
        || text.lines().nth(1).is_some_and(|line| line.starts_with("// Generated by Tilewright"))
}

/// The module of all kernels' constants.
const SPECS: &str = "specs";

const HEADER: &str = "// Generated by `tilewright emit`. Do not edit.\n";

/// A variant as the manifest lists it.
#[derive(Debug, Serialize)]
struct ManifestEntry {
    name: String,
    fingerprint: String,
    kernel: String,
    spec: serde_json::Map<String, serde_json::Value>,
    schedule: serde_json::Map<String, serde_json::Value>,
    family: crate::arch::Family,
    budget: crate::budget::Budget,
}

impl ManifestEntry {
    fn of(variant: &Variant) -> Self {
        let candidate = &variant.candidate;
        let json = |value: &crate::value::Value| serde_json::to_value(value).expect("a value is plain data");
        ManifestEntry {
            name: variant.name.clone(),
            fingerprint: variant.fingerprint.clone(),
            kernel: candidate.spec.kernel().to_owned(),
            spec: candidate.spec.values().iter().map(|(name, value)| (name.clone(), json(value))).collect(),
            schedule: candidate
                .schedule
                .values
                .iter()
                .map(|(name, value)| (name.clone(), (*value).into()))
                .collect(),
            family: candidate.schedule.family,
            budget: candidate.budget,
        }
    }
}

fn bindings_of(
    source: &KernelSource,
    generator: &Generator,
    include: &dyn Fn(&str) -> String,
    constants: Constants,
) -> String {
    // Of the shared declarations those that this one includes: an edit of another is none of this kernel.
    let kernel = generator.kernel();
    let is_used =
        |path: &str| !library::is_declaration(path) || kernel.includes.iter().any(|known| known == path);
    let files = source.files.iter().filter(|(path, _)| is_used(path));
    let of_folder = |file: &str| include(&format!("{}/{file}", source.name));
    let paths = Paths {
        declaration: of_folder("kernel.rs"),
        files: files.map(|(path, _)| (path.to_string(), include(path))).collect(),
        check: source.has_check.then(|| of_folder(CHECK)),
    };
    crate::bindings::bindings(kernel, &paths, constants)
}

fn first_line(generator: &Generator) -> String {
    let kernel = generator.kernel();
    kernel.doc.lines().next().map_or_else(|| format!("Kernel `{}`.", kernel.name), str::to_owned)
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(|source| Error::Io {
        action: "writing",
        path: path.to_owned(),
        source,
    })
}
