//! Safetensors files, read and written.

use safetensors::tensor::{SafeTensorError, SafeTensors, TensorView};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use tilewright::DType;

/// What can be wrong with a file of tensors.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    #[error("cannot read {}: {source}; check the path", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is no safetensors file: {why}; save q, k and v with safetensors", path.display())]
    NotSafetensors { path: PathBuf, why: String },
    #[error(
        "{} is cut short: it has {found} bytes of {needed}; copy or download it again",
        path.display()
    )]
    CutShort { path: PathBuf, found: u64, needed: u64 },
    #[error("{} has no tensor `{name}`, it has {found}; name the tensors q, k and v", path.display())]
    Missing { path: PathBuf, name: String, found: String },
    #[error("`{name}` in {} has dtype {found}, needed f16 or bf16: convert it first", path.display())]
    DType { path: PathBuf, name: String, found: String },
}

/// A file in memory whose header has been checked.
pub struct TensorFile {
    path: PathBuf,
    bytes: Cow<'static, [u8]>,
}

/// A tensor as it lies in the file.
pub struct RawTensor<'a> {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub bytes: &'a [u8],
}

impl TensorFile {
    /// Reads a file and checks that it is complete.
    pub fn read(path: &Path) -> Result<Self, TensorFileError> {
        let read = std::fs::read(path);
        let bytes = read.map_err(|source| TensorFileError::Read { path: path.to_owned(), source })?;
        Self::new(path.to_owned(), bytes.into())
    }

    /// A file that is part of the program; `name` is what messages call it.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self, TensorFileError> {
        Self::new(PathBuf::from(name), bytes.into())
    }

    fn new(path: PathBuf, bytes: Cow<'static, [u8]>) -> Result<Self, TensorFileError> {
        match SafeTensors::deserialize(&bytes) {
            Ok(_) => Ok(TensorFile { path, bytes }),
            Err(error) => Err(match complete_length(&bytes) {
                Some(needed) if needed > bytes.len() as u64 => {
                    TensorFileError::CutShort { path, found: bytes.len() as u64, needed }
                }
                _ => TensorFileError::NotSafetensors { path, why: reason(&error, bytes.len()) },
            }),
        }
    }

    /// The half-precision tensor of that name.
    pub fn half(&self, name: &str) -> Result<RawTensor<'_>, TensorFileError> {
        let path = || self.path.clone();
        let file = self.parsed()?;
        let Ok(view) = file.tensor(name) else {
            let mut names: Vec<String> = file.names().iter().map(|name| format!("`{name}`")).collect();
            names.sort();
            let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(TensorFileError::Missing { path: path(), name: name.to_owned(), found });
        };
        let dtype = match view.dtype() {
            safetensors::Dtype::F16 => DType::F16,
            safetensors::Dtype::BF16 => DType::Bf16,
            other => {
                let found = format!("{other:?}").to_lowercase();
                return Err(TensorFileError::DType { path: path(), name: name.to_owned(), found });
            }
        };
        Ok(RawTensor { dtype, shape: view.shape().to_vec(), bytes: view.data() })
    }

    /// The text metadata.
    pub fn metadata(&self) -> HashMap<String, String> {
        let read = SafeTensors::read_metadata(&self.bytes).ok();
        read.and_then(|(_, metadata)| metadata.metadata().clone()).unwrap_or_default()
    }

    fn parsed(&self) -> Result<SafeTensors<'_>, TensorFileError> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| TensorFileError::NotSafetensors {
            path: self.path.clone(),
            why: reason(&error, self.bytes.len()),
        })
    }
}

/// The length the file should have by its header, as far as the header is there; none when it does not look like one.
fn complete_length(bytes: &[u8]) -> Option<u64> {
    let header = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let start = header.checked_add(8).filter(|_| header <= 100_000_000)?;
    let Some(text) = bytes.get(8..start as usize) else {
        // The header itself is cut; a text file would claim a header of many petabytes.
        return bytes.get(8).is_none_or(|&first| first == b'{').then_some(start);
    };
    let json: serde_json::Value = serde_json::from_slice(text).ok()?;
    let ends = json.as_object()?.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    start.checked_add(ends.max().unwrap_or(0))
}

fn reason(error: &SafeTensorError, len: usize) -> String {
    match error {
        SafeTensorError::HeaderTooSmall => format!("it has only {len} bytes"),
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            "it does not begin with the length of a header".to_owned()
        }
        SafeTensorError::MetadataIncompleteBuffer => "its tensors do not cover the file exactly".to_owned(),
        other => other.to_string(),
    }
}

/// A file that appears under its name only when it is complete.
pub struct PendingFile {
    target: PathBuf,
    file: NamedTempFile,
}

impl PendingFile {
    /// Creates the file beside its target: a place that cannot be written to is found out before the work is done.
    pub fn create(target: &Path) -> std::io::Result<Self> {
        if target.is_dir() {
            return Err(std::io::Error::new(std::io::ErrorKind::IsADirectory, "it is a folder"));
        }
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tilewright-").suffix(".partial");
        #[cfg(unix)]
        {
            // As any other new file; tempfile's own are for their owner alone.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        Ok(PendingFile { target: target.to_owned(), file: builder.tempfile_in(folder)? })
    }

    /// Writes everything and gives the file its name.
    pub fn publish(mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.persist(&self.target).map(drop).map_err(|error| error.error)
    }
}

/// The bytes of a safetensors file with these tensors.
pub fn serialize(
    tensors: &[(&str, safetensors::Dtype, Vec<usize>, Vec<u8>)],
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, SafeTensorError> {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, SafeTensorError>>()?;
    safetensors::serialize(views, Some(metadata))
}
