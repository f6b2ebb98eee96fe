//! What the surroundings say about where NVRTC may be: a value, so that a test can invent its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

/// Names the NVRTC library, or the folder that holds it. It is the user's word: nothing else is tried.
pub const NVRTC_VARIABLE: &str = "TILEWRIGHT_NVRTC";
/// Moves Tilewright's own data folder.
pub const DATA_VARIABLE: &str = "TILEWRIGHT_DATA";
/// The variables that name a CUDA folder, in the order they are tried.
pub(crate) const CUDA_VARIABLES: [&str; 3] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"];
/// The variables that name the root of the active Python environment.
pub(crate) const PYTHON_VARIABLES: [&str; 2] = ["VIRTUAL_ENV", "CONDA_PREFIX"];

/// The variable that names further folders of Python packages.
pub(crate) const PYTHON_PATH_VARIABLE: &str = "PYTHONPATH";

/// Every variable that the search depends on.
pub(crate) fn variables() -> impl Iterator<Item = &'static str> {
    let single = [PYTHON_PATH_VARIABLE, NVRTC_VARIABLE, DATA_VARIABLE];
    CUDA_VARIABLES.into_iter().chain(PYTHON_VARIABLES).chain(single)
}

/// Where Python looks for packages.
#[derive(Clone, Debug)]
pub(super) enum Python {
    /// Ask the interpreter on the `PATH`; only done when nothing before it was found.
    Ask,
    /// These folders.
    Folders(Vec<PathBuf>),
}

/// The part of the process environment that the search for a toolchain depends on.
#[derive(Clone, Debug)]
pub struct Environment {
    variables: BTreeMap<String, PathBuf>,
    pub(super) default_parent: PathBuf,
    pub(super) python: Python,
    data: Option<PathBuf>,
}

impl Environment {
    /// This process's environment.
    pub fn current() -> Self {
        let variables = variables()
            .filter_map(|name| Some((name.to_string(), std::env::var_os(name)?)))
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name, PathBuf::from(value)))
            .collect();
        let data = etcetera::choose_base_strategy().ok().map(|base| base.data_dir().join("tilewright"));
        Self { variables, default_parent: PathBuf::from("/usr/local"), python: Python::Ask, data }
    }

    /// An environment in which nothing is set and whose default CUDA folders lie under `root`.
    pub fn empty(root: &Path) -> Self {
        Self {
            variables: BTreeMap::new(),
            default_parent: root.join("usr/local"),
            python: Python::Folders(Vec::new()),
            data: None,
        }
    }

    /// The same with a variable set.
    pub fn with_variable(mut self, name: &str, value: impl Into<PathBuf>) -> Self {
        self.variables.insert(name.to_string(), value.into());
        self
    }

    /// The same with these folders as Python's package folders, instead of asking the `python3` of the `PATH`: a process that is a
    /// Python gives its own `sys.path`.
    pub fn with_python_folders(mut self, folders: Vec<PathBuf>) -> Self {
        self.python = Python::Folders(folders);
        self
    }

    /// A variable's value, when it is set and not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<&Path> {
        self.variables.get(name).map(PathBuf::as_path)
    }

    /// Tilewright's data folder; none when `TILEWRIGHT_DATA` is unset and the user has no home.
    pub fn data_folder(&self) -> Option<&Path> {
        self.variable(DATA_VARIABLE).or(self.data.as_deref())
    }

    /// Where `toolchain install` puts its packages.
    pub fn toolchain_folder(&self) -> Option<PathBuf> {
        self.data_folder().map(|data| data.join("toolchain"))
    }
}
