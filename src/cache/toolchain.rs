//! Where NVRTC was found last, so that a warm start neither asks Python nor loads NVRTC.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::{KernelCache, files, sealed};
use crate::toolchain::{Environment, Toolchain, variables};

const FILE: &str = "toolchain.json";

/// How many environments are remembered: those of a few virtual environments of Python.
const REMEMBERED: usize = 8;

/// One NVRTC, and the environment in which the search came upon it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Found {
    variables: BTreeMap<String, PathBuf>,
    data: Option<PathBuf>,
    library: PathBuf,
    bytes: u64,
    modified_ns: u64,
    version: (i32, i32),
}

impl KernelCache {
    /// The version of the NVRTC that the search would come upon, when it was remembered in the same environment and
    /// the library has not changed since. NVRTC is not loaded.
    pub fn nvrtc_version(&self, environment: &Environment) -> Option<(i32, i32)> {
        let (variables, data) = surroundings(environment);
        let found =
            self.found().into_iter().find(|found| found.variables == variables && found.data == data)?;
        (facts(&found.library)? == (found.bytes, found.modified_ns)).then_some(found.version)
    }

    /// Remembers which NVRTC the search came upon. A cache that cannot be written to does without.
    pub(crate) fn remember_nvrtc(&self, toolchain: &Toolchain, environment: &Environment) {
        self.remember(toolchain.library(), toolchain.version(), environment);
    }

    fn remember(&self, library: &Path, version: (i32, i32), environment: &Environment) {
        let Some((bytes, modified_ns)) = facts(library) else { return };
        let (variables, data) = surroundings(environment);
        let mut all = self.found();
        let new = Found { variables, data, library: library.to_path_buf(), bytes, modified_ns, version };
        if all.first() == Some(&new) {
            return;
        }
        all.retain(|found| (&found.variables, &found.data) != (&new.variables, &new.data));
        all.insert(0, new);
        all.truncate(REMEMBERED);
        // A path that is not UTF-8 has no JSON form.
        let Ok(text) = serde_json::to_vec(&all) else { return };
        let v1 = self.v1();
        let written = files::make_folder(&v1, &v1)
            .and_then(|()| files::replace(&v1, &v1.join(FILE), &sealed::seal("", FILE, &text)));
        if let Err(error) = written {
            tracing::debug!(%error, "the place of NVRTC is not remembered");
        }
    }

    fn found(&self) -> Vec<Found> {
        let path = self.v1().join(FILE);
        let opened = self.sound(&path, self.read_sealed(&path)).filter(|opened| opened.file == FILE);
        opened.and_then(|opened| serde_json::from_slice(&opened.content).ok()).unwrap_or_default()
    }
}

/// All that decides where the search looks.
fn surroundings(environment: &Environment) -> (BTreeMap<String, PathBuf>, Option<PathBuf>) {
    let set =
        variables().filter_map(|name| Some((name.to_string(), environment.variable(name)?.to_path_buf())));
    (set.collect(), environment.data_folder().map(Path::to_path_buf))
}

/// What tells one build of a library from the next.
fn facts(library: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(library).ok().filter(fs::Metadata::is_file)?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((metadata.len(), u64::try_from(modified.as_nanos()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_remembered_until_something_changes() {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = KernelCache::at(&dir.path().join("cache")).expect("a cache");
        let library = dir.path().join("libnvrtc.so.13");
        fs::write(&library, "library").expect("a file");
        let one = Environment::empty(dir.path());
        let two = one.clone().with_variable("CUDA_HOME", dir.path());
        assert_eq!(cache.nvrtc_version(&one), None);
        cache.remember(&library, (13, 0), &one);
        cache.remember(&library, (12, 9), &two);
        assert_eq!(cache.nvrtc_version(&one), Some((13, 0)));
        assert_eq!(cache.nvrtc_version(&two), Some((12, 9)));
        assert_eq!(cache.nvrtc_version(&two.with_variable("VIRTUAL_ENV", "/venv")), None);
        cache.remember(&library, (13, 1), &one);
        assert_eq!(cache.nvrtc_version(&one), Some((13, 1)));

        fs::write(&library, "a newer library").expect("a file");
        assert_eq!(cache.nvrtc_version(&one), None);
        cache.remember(&library, (13, 2), &one);
        fs::remove_file(&library).expect("a file");
        assert_eq!(cache.nvrtc_version(&one), None);

        fs::write(cache.root().join("v1/toolchain.json"), "{").expect("a file");
        fs::write(&library, "library").expect("a file");
        assert_eq!(cache.nvrtc_version(&one), None);
        cache.remember(&library, (13, 0), &one);
        assert_eq!(cache.nvrtc_version(&one), Some((13, 0)));
    }
}
