//! Safetensors files, read and written.

use safetensors::tensor::{SafeTensorError, SafeTensors, TensorView};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tilewright::DType;
use tilewright::output::{printable, shown};

use super::source::Source;

/// What can be wrong with a file of tensors.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    #[error("cannot read {}: {source}; check the path", shown(path))]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is no safetensors file: {}; save the tensors with safetensors", shown(path), printable(why))]
    NotSafetensors { path: PathBuf, why: String },
    #[error("{} is cut short: it has {found} bytes of {needed}; copy or download it again", shown(path))]
    CutShort { path: PathBuf, found: u64, needed: u64 },
    #[error(
        "{} has no tensor `{name}`, it has {}; name the tensors q, k and v",
        shown(path),
        printable(found)
    )]
    Missing { path: PathBuf, name: String, found: String },
    #[error("`{}` in {} has dtype {found}, needed {needed}: convert it first", printable(name), shown(path))]
    DType { path: PathBuf, name: String, found: String, needed: &'static str },
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
    /// Reads a file, a pipe or standard input, and checks that it is complete.
    pub fn read(source: &Source) -> Result<Self, TensorFileError> {
        let (path, read) = match source.is_standard() {
            true => (PathBuf::from("standard input"), read_all(io::stdin().lock())),
            false => (source.path().to_owned(), File::open(source.path()).and_then(read_all)),
        };
        match read {
            Ok(bytes) => Self::new(path, bytes.into()),
            Err(source) => Err(TensorFileError::Read { path, source }),
        }
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
        self.raw(name, &view, &[DType::F16, DType::Bf16], "f16 or bf16")
    }

    /// Every tensor by its name, in the order of the names.
    pub fn all(&self) -> Result<Vec<(String, RawTensor<'_>)>, TensorFileError> {
        let file = self.parsed()?;
        let needed = "f16, bf16, f32, i32 or u8";
        let raw = |(name, view): (String, _)| {
            let tensor = self.raw(&name, &view, &DType::ALL, needed)?;
            Ok((name, tensor))
        };
        let mut all = file.tensors().into_iter().map(raw).collect::<Result<Vec<_>, _>>()?;
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(all)
    }

    fn raw<'a>(
        &'a self,
        name: &str,
        view: &TensorView<'a>,
        taken: &[DType],
        needed: &'static str,
    ) -> Result<RawTensor<'a>, TensorFileError> {
        let dtype = match view.dtype() {
            safetensors::Dtype::F16 => Some(DType::F16),
            safetensors::Dtype::BF16 => Some(DType::Bf16),
            safetensors::Dtype::F32 => Some(DType::F32),
            safetensors::Dtype::I32 => Some(DType::I32),
            safetensors::Dtype::U8 => Some(DType::U8),
            _ => None,
        };
        let Some(dtype) = dtype.filter(|dtype| taken.contains(dtype)) else {
            let found = format!("{:?}", view.dtype()).to_lowercase();
            let (path, name) = (self.path.clone(), name.to_owned());
            return Err(TensorFileError::DType { path, name, found, needed });
        };
        Ok(RawTensor { dtype, shape: view.shape().to_vec(), bytes: view.data() })
    }

    /// The file as messages call it.
    pub fn path(&self) -> &Path {
        &self.path
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

/// Reads as much as a file should have by its header, and one byte: what has no end (`/dev/zero`) is no such file.
fn read_all(mut from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.by_ref().take(8).read_to_end(&mut bytes)?;
    let header = bytes.first_chunk().map_or(0, |&length| u64::from_le_bytes(length));
    if header <= LARGEST_HEADER {
        from.by_ref().take(header).read_to_end(&mut bytes)?;
        let rest = complete_length(&bytes).unwrap_or(0).saturating_sub(bytes.len() as u64);
        from.take(rest.saturating_add(1)).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// The largest header that safetensors reads.
const LARGEST_HEADER: u64 = 100_000_000;

/// The length the file should have by its header, as far as the header is there; none when it does not look like one.
fn complete_length(bytes: &[u8]) -> Option<u64> {
    let header = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let start = header.checked_add(8).filter(|_| header <= LARGEST_HEADER)?;
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

/// The bytes of a safetensors file with these tensors. Equal content gives equal bytes.
pub fn serialize(
    tensors: &[(&str, safetensors::Dtype, Vec<usize>, Vec<u8>)],
    metadata: &BTreeMap<&str, String>,
) -> Result<Vec<u8>, SafeTensorError> {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, SafeTensorError>>()?;
    let mut bytes = safetensors::serialize(views, None)?;
    // The crate writes metadata in the order of a hash map, another one each time: they are put in here.
    let length = bytes.first_chunk().map_or(0, |&length| u64::from_le_bytes(length)) as usize;
    let invalid = SafeTensorError::InvalidHeaderDeserialization;
    let mut header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + length]).map_err(invalid)?;
    header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let new = (text.len() as u64).to_le_bytes().into_iter().chain(text);
    bytes.splice(..8 + length, new);
    Ok(bytes)
}

impl RawTensor<'_> {
    /// How many elements are NaN, and how many infinite.
    pub fn non_finite(&self) -> NonFinite {
        // All bits of the exponent; what is above the sign and the infinity is a NaN.
        let infinity = if self.dtype == DType::F16 { 0x7c00 } else { 0x7f80 };
        let mut count = NonFinite::default();
        for bits in self.bytes.chunks_exact(2) {
            let magnitude = u16::from_le_bytes([bits[0], bits[1]]) & 0x7fff;
            count.nan += u64::from(magnitude > infinity);
            count.infinite += u64::from(magnitude == infinity);
        }
        count
    }
}

/// Elements that are no numbers one can compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct NonFinite {
    pub nan: u64,
    pub infinite: u64,
}

impl NonFinite {
    /// A remark on tensor `name`, if there is something to remark.
    pub fn remark(&self, name: &str) -> Option<String> {
        let NonFinite { nan, infinite } = *self;
        let remark = format!(
            "{name} has {nan} NaN and {infinite} infinite elements: every row that attends to one of them becomes NaN"
        );
        (nan + infinite > 0).then_some(remark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn what_is_not_finite_is_counted() {
        let values =
            [0.0, -0.0, 1.5, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY, 65504.0];
        let count = |dtype, bytes: &[u8]| RawTensor { dtype, shape: vec![9], bytes }.non_finite();
        let f16s: Vec<u8> = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let bf16s: Vec<u8> = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        let found = NonFinite { nan: 2, infinite: 3 };
        assert_eq!((count(DType::F16, &f16s), count(DType::Bf16, &bf16s)), (found, found));
        assert!(found.remark("k").unwrap().starts_with("k has 2 NaN and 3 infinite"));
        assert_eq!(NonFinite::default().remark("q"), None);
    }

    #[test]
    fn no_more_is_read_than_a_file_has() {
        let tensors = [("x", safetensors::Dtype::U8, vec![3], vec![1, 2, 3])];
        let whole = serialize(&tensors, &BTreeMap::from([("b", "1".into()), ("a", "2".into())])).unwrap();
        assert_eq!(read_all(&whole[..]).unwrap(), whole);
        assert_eq!(read_all(&whole[..20]).unwrap(), whole[..20]);
        assert_eq!(read_all((&whole[..]).chain(io::repeat(7))).unwrap().len(), whole.len() + 1);
        assert!(read_all(io::repeat(0)).unwrap().len() < 16);
        assert_eq!(read_all(io::repeat(255)).unwrap().len(), 8);
        let read = SafeTensors::deserialize(&whole).unwrap();
        assert_eq!(read.tensor("x").unwrap().data(), [1, 2, 3]);
        let (header, metadata) = SafeTensors::read_metadata(&whole).unwrap();
        assert_eq!((header % 8, metadata.metadata().as_ref().unwrap()["a"].as_str()), (0, "2"));
    }
}
