//! A kernel's folder: its declaration and bodies.

use crate::error::Error;
use crate::library;
use std::borrow::Cow;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

/// The folder of what kernels share: the tile library's, and beside the kernels' folders one of their own.
const LIB: &str = "lib";

/// What checks a schedule of the kernel on a small case.
pub(crate) const CHECK: &str = "check.rs";

/// The files of one kernel: embedded in generated bindings, or read from a folder.
#[derive(Debug, Clone)]
pub struct KernelSource {
    /// The kernel's and the folder's name.
    pub name: Cow<'static, str>,
    /// The text of `kernel.rs`.
    pub declaration: Cow<'static, str>,
    /// Bodies, headers and shared declarations as (path inside the templates folder, text).
    pub files: Cow<'static, [(Cow<'static, str>, Cow<'static, str>)]>,
    /// Whether the folder has a `check.rs`: Rust for the bindings, and no part of what is rendered.
    pub has_check: bool,
}

impl KernelSource {
    /// Reads `<dir>/<name>/`, and the headers and declarations of `<dir>/lib/`, which all kernels of `dir` may include.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read.
    pub fn read(dir: &Path, name: &str) -> Result<Self, Error> {
        let folder = dir.join(name);
        let declaration = read(&folder.join("kernel.rs"))?;
        let mut files = Vec::new();
        let is_part =
            |file: &str| file.ends_with(".cu") || is_shared(file) && !["kernel.rs", CHECK].contains(&file);
        for file in sorted_entries(&folder, is_part)? {
            files.push((format!("{name}/{file}").into(), read(&folder.join(&file))?.into()));
        }
        let lib = dir.join(LIB);
        if lib.is_dir() {
            for file in sorted_entries(&lib, is_shared)? {
                files.push((format!("{LIB}/{file}").into(), read(&lib.join(&file))?.into()));
            }
        }
        Ok(KernelSource {
            name: name.to_owned().into(),
            declaration: declaration.into(),
            files: files.into(),
            has_check: folder.join(CHECK).is_file(),
        })
    }

    /// Reads every kernel of a templates folder, by name: each subfolder but `lib` and hidden ones.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read, [`Error::NoDeclaration`] for a folder without a `kernel.rs`, [`Error::NoKernels`] when
    /// there is none, [`Error::Spec`] for one in `lib`.
    pub fn read_all(dir: &Path) -> Result<Vec<Self>, Error> {
        if dir.join(LIB).join("kernel.rs").is_file() {
            let message =
                format!("the folder `{LIB}` holds what all kernels share: give the kernel another name");
            return Err(Error::Spec { kernel: LIB.to_owned(), message });
        }
        let is_kernel = |name: &str| name != LIB && !name.starts_with('.');
        let kernels = sorted_entries(dir, is_kernel)?
            .into_iter()
            .filter(|name| dir.join(name).is_dir())
            .map(|name| {
                let folder = dir.join(&name);
                match folder.join("kernel.rs").is_file() {
                    true => KernelSource::read(dir, &name),
                    false => Err(Error::NoDeclaration { path: folder }),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        if kernels.is_empty() {
            return Err(Error::NoKernels { path: dir.to_owned() });
        }
        Ok(kernels)
    }
}

/// Whether a file is one to include: into a body or into a declaration.
fn is_shared(file: &str) -> bool {
    file.ends_with(".cuh") || library::is_declaration(file)
}

/// The most bytes of a file: more than anybody writes by hand.
const MOST_BYTES: u64 = 4 << 20;

fn read(path: &Path) -> Result<String, Error> {
    let fail = |source| Error::Io { action: "reading", path: path.to_owned(), source };
    let wrong = |message: String| fail(io::Error::new(io::ErrorKind::InvalidData, message));
    // A pipe would be waited for, and a device may have no end.
    if !fs::metadata(path).map_err(fail)?.is_file() {
        return Err(wrong("what has this name is no file: put a text there, or rename it".to_owned()));
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(fail)?;
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(wrong(format!("the file has more than {MOST_BYTES} bytes: split it")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        wrong(format!("its text is not UTF-8 from byte {at} on: save it as UTF-8"))
    })
}

/// The names in a folder that are wanted, in a fixed order, so that what is generated does not depend on the file system.
fn sorted_entries(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>, Error> {
    let fail = |path: &Path, source| Error::Io { action: "reading", path: path.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(|source| fail(dir, source))? {
        let entry = entry.map_err(|source| fail(dir, source))?;
        let name = entry.file_name();
        if !wanted(&name.to_string_lossy()) {
            continue;
        }
        let Some(name) = name.to_str() else {
            let message = "its name is not UTF-8: rename it";
            return Err(fail(&entry.path(), io::Error::new(io::ErrorKind::InvalidData, message)));
        };
        names.push(name.to_owned());
    }
    names.sort();
    Ok(names)
}
