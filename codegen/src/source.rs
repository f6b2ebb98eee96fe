//! A kernel's folder: its declaration and bodies.

use crate::Error;
use std::borrow::Cow;
use std::path::Path;

/// The files of one kernel: embedded in generated bindings, or read from a folder.
#[derive(Debug, Clone)]
pub struct KernelSource {
    /// The kernel's and the folder's name.
    pub name: Cow<'static, str>,
    /// The text of `kernel.rs`.
    pub declaration: Cow<'static, str>,
    /// Bodies and headers as (path inside the templates folder, text).
    pub files: Cow<'static, [(Cow<'static, str>, Cow<'static, str>)]>,
}

impl KernelSource {
    /// Reads `<dir>/<name>/`.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read.
    pub fn read(dir: &Path, name: &str) -> Result<Self, Error> {
        let folder = dir.join(name);
        let declaration = read(&folder.join("kernel.rs"))?;
        let mut files = Vec::new();
        for file in sorted_entries(&folder)? {
            if file.ends_with(".cu") || file.ends_with(".cuh") {
                files.push((format!("{name}/{file}").into(), read(&folder.join(&file))?.into()));
            }
        }
        Ok(KernelSource {
            name: name.to_owned().into(),
            declaration: declaration.into(),
            files: files.into(),
        })
    }

    /// Reads every kernel of a templates folder, by name: each subfolder that has a `kernel.rs`.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read, [`Error::NoKernels`] when there is none.
    pub fn read_all(dir: &Path) -> Result<Vec<Self>, Error> {
        let kernels = sorted_entries(dir)?
            .into_iter()
            .filter(|name| dir.join(name).join("kernel.rs").is_file())
            .map(|name| KernelSource::read(dir, &name))
            .collect::<Result<Vec<_>, _>>()?;
        if kernels.is_empty() {
            return Err(Error::NoKernels { path: dir.to_owned() });
        }
        Ok(kernels)
    }
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Io {
        action: "reading",
        path: path.to_owned(),
        source,
    })
}

/// Names in a folder in a fixed order, so that what is generated does not depend on the file system.
fn sorted_entries(dir: &Path) -> Result<Vec<String>, Error> {
    let fail = |source| Error::Io { action: "reading", path: dir.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        names.push(entry.map_err(fail)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
