//! Where an installation keeps its files: the library, its builtins and the headers, in the layouts that there are.

use std::path::{Path, PathBuf};

use super::refusal::{OLDEST_NVRTC, Refusal};
use crate::trust::{self, Distrust};

/// The headers that rendered sources include.
const HEADERS: [&str; 2] = ["cuda_fp16.h", "cuda_bf16.h"];

/// A place that has all the files of a toolchain. The version is the one its file names tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    /// The library as it was found, by a link as a rule.
    pub library: PathBuf,
    /// The files behind the links, which nobody else can change: these are opened.
    pub opened: PathBuf,
    pub builtins: PathBuf,
    pub include: PathBuf,
}

/// The folders below `targets` that hold a toolkit for this machine.
const TARGETS: &[&str] = match cfg!(target_arch = "aarch64") {
    true => &["sbsa-linux", "aarch64-linux"],
    false => &["x86_64-linux"],
};

/// Checks that a folder (a CUDA root, a library folder, or a library itself) has all a toolchain needs, and that nobody
/// else can change it.
pub(super) fn inspect(place: &Path) -> Result<Located, Refusal> {
    if !place.exists() {
        return Err(Refusal::Missing);
    }
    let library = match place.is_file() {
        true => place.to_path_buf(),
        false => library_in(place).ok_or(Refusal::NoLibrary)?,
    };
    // Absolute, or the dynamic linker would search its own path for the bare name.
    let library = std::path::absolute(&library).unwrap_or(library);
    let real = library.canonicalize().unwrap_or_else(|_| library.clone());
    // A link may stand alone: what belongs to the library is beside what the link leads to.
    let folders: Vec<&Path> = [&library, &real].into_iter().filter_map(|library| library.parent()).collect();
    let ((major, minor), builtins) = folders
        .iter()
        .find_map(|folder| builtins(folder, &real))
        .ok_or_else(|| Refusal::NoBuiltins { library: library.clone() })?;
    if (major, minor) < OLDEST_NVRTC {
        return Err(Refusal::TooOld { major, minor });
    }
    let include = includes(place, &folders)
        .into_iter()
        .find(|include| HEADERS.iter().all(|header| include.join(header).is_file()))
        .ok_or_else(|| Refusal::NoHeaders { library: library.clone() })?;
    for header in HEADERS {
        trusted(&include.join(header))?;
    }
    Ok(Located {
        opened: trusted(&library)?,
        builtins: trusted(&builtins)?,
        include: trusted(&include)?,
        library,
    })
}

/// The file or folder behind the links, when only this user and root can change it.
pub(super) fn trusted(path: &Path) -> Result<PathBuf, Refusal> {
    trust::resolve(path).map_err(|distrust| match distrust {
        Distrust::Exposed(path, exposure) => Refusal::Exposed { path, exposure },
        Distrust::Io(path, error) => Refusal::Unreadable { path, message: error.to_string() },
    })
}

/// Where the headers may be, of a place and of the folders that the library lies in.
fn includes(place: &Path, folders: &[&Path]) -> Vec<PathBuf> {
    let mut includes = Vec::new();
    let mut root = |root: &Path| {
        includes.push(root.join("include"));
        // Conda's: the libraries are in `lib`, the headers are not in `include`.
        includes.extend(TARGETS.iter().map(|target| root.join("targets").join(target).join("include")));
    };
    root(place);
    for folder in folders {
        // `lib`, or Debian's `lib/x86_64-linux-gnu`.
        folder.ancestors().take(3).for_each(&mut root);
    }
    // The CUDA 12 packages of pip keep the runtime's headers in a package of their own.
    includes.extend(folders.iter().map(|folder| folder.join("../../cuda_runtime/include")));
    includes
}

/// The newest NVRTC of a folder, be it a CUDA root, an environment's root or a library folder.
pub(super) fn library_in(place: &Path) -> Option<PathBuf> {
    let targets = TARGETS.iter().map(|target| place.join("targets").join(target).join("lib"));
    let folders = ["lib64", "lib"].map(|folder| place.join(folder)).into_iter().chain(targets);
    folders.chain([place.to_path_buf()]).find_map(|folder| first_library(&folder))
}

/// The newest `libnvrtc.so*` of a folder.
fn first_library(folder: &Path) -> Option<PathBuf> {
    let versions = entries(folder).into_iter().filter_map(|(name, path)| {
        let rest = name.strip_prefix("libnvrtc.so")?;
        let version = match rest.strip_prefix('.') {
            Some(version) => numbers(version)?,
            None if rest.is_empty() => Vec::new(),
            None => return None,
        };
        path.is_file().then_some((version, path))
    });
    versions.max().map(|(_, path)| path)
}

/// The builtins library that belongs to `library`, with the version in its name: it alone names the minor version.
fn builtins(folder: &Path, library: &Path) -> Option<((i32, i32), PathBuf)> {
    let real = library.canonicalize().unwrap_or_else(|_| library.to_path_buf());
    let wanted = real
        .file_name()
        .and_then(|name| numbers(name.to_str()?.strip_prefix("libnvrtc.so.")?))
        .unwrap_or_default();
    let versions = entries(folder).into_iter().filter_map(|(name, path)| {
        let version = numbers(name.strip_prefix("libnvrtc-builtins.so.")?)?;
        let belongs = version.len() >= 2 && version.iter().zip(wanted.iter().take(2)).all(|(a, b)| a == b);
        (belongs && path.is_file()).then_some((version, path))
    });
    let (version, path) = versions.max()?;
    let part = |index: usize| i32::try_from(version[index]).ok();
    Some(((part(0)?, part(1)?), path))
}

/// A folder's entries by name; none when it cannot be read.
pub(super) fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect()
}

/// `13.0.88` as numbers; none when anything else is in it.
pub(super) fn numbers(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}
