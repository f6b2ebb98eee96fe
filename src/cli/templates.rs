//! The kernels that a command works on: the shipped ones, or those of a folder that `--templates` names.

use super::args::SpecList;
use super::error::CliError;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tilewright::codegen::{Error, Generator, KernelSource, KernelSpec};
use tilewright::kernels;

/// Kernels by name.
pub struct Kernels {
    folder: Option<PathBuf>,
    sources: Vec<Cow<'static, KernelSource>>,
}

impl Kernels {
    /// Those of a folder, or the shipped ones.
    pub fn of(templates: Option<&Path>) -> Result<Self, CliError> {
        let sources = match templates {
            Some(folder) => {
                let read = KernelSource::read_all(folder).map_err(|error| match error {
                    Error::Io { path, source, .. } if path == folder => {
                        CliError::NoTemplates { path, source }
                    }
                    Error::Io { path, source, .. } => CliError::KernelFile { path, source },
                    other => other.into(),
                })?;
                read.into_iter().map(Cow::Owned).collect()
            }
            None => kernels::ALL.iter().copied().map(Cow::Borrowed).collect(),
        };
        Ok(Kernels { folder: templates.map(Path::to_owned), sources })
    }

    pub fn all(&self) -> impl Iterator<Item = &KernelSource> {
        self.sources.iter().map(AsRef::as_ref)
    }

    /// The kernel of that name.
    pub fn named(&self, name: &str) -> Result<&KernelSource, CliError> {
        self.all().find(|source| source.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.all().map(|source| source.name.as_ref()).collect();
            CliError::NoKernel { found: name.to_owned(), known: known.join(", ") }
        })
    }

    /// What the generator says of one of them; its files are named as they are found from here.
    pub fn placed<T>(&self, said: Result<T, Error>) -> Result<T, Error> {
        said.map_err(|error| match &self.folder {
            Some(folder) => error.within(folder),
            None => error,
        })
    }
}

/// The first shipped spec, with the values given in their places.
pub fn specialised(generator: &Generator, given: &SpecList) -> Result<Arc<KernelSpec>, CliError> {
    let first = generator.shipped_specs()?.into_iter().next();
    let mut values: Vec<(&str, _)> = given.0.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    if let Some(spec) = &first {
        for (name, value) in spec.values() {
            // A default follows the values given.
            if !spec.is_default(name) && !values.iter().any(|(known, _)| known == name) {
                values.push((name, *value));
            }
        }
    }
    Ok(Arc::new(generator.spec(&values)?))
}
