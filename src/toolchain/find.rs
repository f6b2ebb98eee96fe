//! The search for NVRTC: which places are looked at, in which order, and why each was refused.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use super::environment::{
    CUDA_VARIABLES, Environment, NVRTC_VARIABLE, PYTHON_PATH_VARIABLE, PYTHON_VARIABLES, Python,
};
use super::layout::{Located, entries, inspect, library_in, numbers};
use super::refusal::Refusal;
use crate::output::lossy;

/// What made the search look at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Source {
    /// An environment variable.
    Variable(&'static str),
    /// One of the folders the CUDA installer uses.
    DefaultFolder,
    /// A package of the active Python.
    Python,
    /// Tilewright's own data folder, filled by [`install`](super::install).
    DataFolder,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => f.write_str(name),
            Self::DefaultFolder => f.write_str("default CUDA folder"),
            Self::Python => f.write_str("Python packages"),
            Self::DataFolder => f.write_str("Tilewright's data folder"),
        }
    }
}

/// How looking at a place ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// This is the toolchain in use.
    Used {
        /// NVRTC's version, major and minor.
        version: (i32, i32),
    },
    /// It cannot be used.
    Refused(Refusal),
}

/// One place the search looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Searched {
    /// The folder or the library.
    #[serde(serialize_with = "lossy")]
    pub place: PathBuf,
    /// What led there.
    pub source: Source,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl fmt::Display for Searched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): ", self.place.display(), self.source)?;
        match &self.outcome {
            Outcome::Used { version: (major, minor) } => write!(f, "NVRTC {major}.{minor}, in use"),
            Outcome::Refused(refusal) => refusal.fmt(f),
        }
    }
}

/// Looks at one place after the other until `open` accepts one; the list says what became of each.
///
/// Later places are not looked at before they are needed: asking Python takes a tenth of a second.
pub(super) fn search<T>(
    environment: &Environment,
    mut open: impl FnMut(&Located) -> Result<(T, (i32, i32)), Refusal>,
) -> (Option<T>, Vec<Searched>) {
    let mut searched: Vec<Searched> = Vec::new();
    let mut seen = HashSet::new();
    // The user's word is final: falling through to another NVRTC would hide that the variable is wrong.
    let groups: &[Group] = match environment.variable(NVRTC_VARIABLE) {
        Some(_) => &[told],
        None => &[cuda_variables, default_folders, python_packages, data_folder],
    };
    for group in groups {
        for (place, source, known) in group(environment) {
            if !seen.insert(place.canonicalize().unwrap_or_else(|_| place.clone())) {
                continue;
            }
            let opened = match known {
                Some(refusal) => Err(refusal),
                None => inspect(&place).and_then(|located| open(&located)),
            };
            match opened {
                Ok((toolchain, version)) => {
                    searched.push(Searched { place, source, outcome: Outcome::Used { version } });
                    return (Some(toolchain), searched);
                }
                Err(refusal) => searched.push(Searched { place, source, outcome: Outcome::Refused(refusal) }),
            }
        }
    }
    (None, searched)
}

/// A place to look at, or one that is refused already.
type Place = (PathBuf, Source, Option<Refusal>);
type Group = fn(&Environment) -> Vec<Place>;

fn told(environment: &Environment) -> Vec<Place> {
    variable_place(environment, NVRTC_VARIABLE).into_iter().collect()
}

fn cuda_variables(environment: &Environment) -> Vec<Place> {
    CUDA_VARIABLES.iter().filter_map(|name| variable_place(environment, name)).collect()
}

fn variable_place(environment: &Environment, name: &'static str) -> Option<Place> {
    Some((environment.variable(name)?.to_path_buf(), Source::Variable(name), None))
}

/// `/usr/local/cuda`, then `/usr/local/cuda-*` from the newest on.
fn default_folders(environment: &Environment) -> Vec<Place> {
    let parent = &environment.default_parent;
    let mut versioned: Vec<(Vec<u32>, PathBuf)> = entries(parent)
        .into_iter()
        .filter_map(|(name, path)| Some((numbers(name.strip_prefix("cuda-")?)?, path)))
        .collect();
    versioned.sort();
    std::iter::once(parent.join("cuda"))
        .chain(versioned.into_iter().rev().map(|(_, path)| path))
        .map(|path| (path, Source::DefaultFolder, None))
        .collect()
}

fn python_packages(environment: &Environment) -> Vec<Place> {
    let mut folders = Vec::new();
    let mut places = Vec::new();
    for name in PYTHON_VARIABLES {
        let Some(prefix) = environment.variable(name) else { continue };
        for (folder, path) in entries(&prefix.join("lib")) {
            if folder.starts_with("python3") {
                folders.push(path.join("site-packages"));
            }
        }
        // Conda's own CUDA packages lie in the environment's root, not in site-packages.
        if library_in(prefix).is_some() {
            places.push((prefix.to_path_buf(), Source::Python, None));
        }
    }
    if let Some(path) = environment.variable(PYTHON_PATH_VARIABLE) {
        folders.extend(std::env::split_paths(path));
    }
    let asked = match &environment.python {
        Python::Ask => ask_python(),
        Python::Folders(folders) => Some(folders.clone()),
    };
    let nobody = asked.is_none();
    folders.extend(asked.unwrap_or_default());
    // What a relative name means depends on where the process happens to be.
    folders.retain(|folder| folder.is_absolute());
    for folder in &folders {
        let packages = ["cu13", "cuda_nvrtc"].map(|package| folder.join("nvidia").join(package));
        places.extend(packages.into_iter().filter(|p| p.is_dir()).map(|p| (p, Source::Python, None)));
    }
    if places.is_empty() {
        let refusal = match nobody {
            true => Refusal::NoPython,
            false => Refusal::NoPackage { folders: folders.len() },
        };
        let site = folders.iter().find(|folder| folder.ends_with("site-packages"));
        let place = site.or(folders.first()).cloned().unwrap_or_else(|| PathBuf::from("python3"));
        places.push((place, Source::Python, Some(refusal)));
    }
    places
}

/// Prints the package folders of an interpreter. Isolated, it leaves out the user's own, which is where `pip install --user`
/// puts packages; a virtual environment has none.
const PACKAGE_FOLDERS: &str = "import site, sys
own = [site.getusersitepackages()] if sys.prefix == sys.base_prefix else []
print('\\n'.join(path for path in sys.path + own if path))";

/// The package folders of the Python on the `PATH`, which is a virtual environment's where one is active.
fn ask_python() -> Option<Vec<PathBuf>> {
    ["python3", "python"].iter().find_map(|program| {
        let output = ask(program).output().ok()?;
        let text = output.status.success().then(|| String::from_utf8(output.stdout).ok())??;
        Some(text.lines().map(PathBuf::from).filter(|path| path.is_dir()).collect())
    })
}

/// The command that asks an interpreter, isolated: a `json.py` in the current folder is nobody's module.
pub(super) fn ask(program: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["-I", "-c", PACKAGE_FOLDERS]).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

fn data_folder(environment: &Environment) -> Vec<Place> {
    let folder = environment.toolchain_folder();
    folder.map(|folder| (package_root(&folder), Source::DataFolder, None)).into_iter().collect()
}

/// Where pip puts the CUDA 13 packages below the folder it is told to install into.
pub(super) fn package_root(target: &Path) -> PathBuf {
    target.join("nvidia/cu13")
}
