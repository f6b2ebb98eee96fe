//! The tensors of the demonstration: one head each of two layers of a trained video transformer, which are part of the
//! program, so that it shows the same wherever it is installed; and files of the user's like them.

use crate::cli::error::CliError;
use crate::cli::source::Source;
use crate::cli::tensor_file::TensorFile;
use std::path::PathBuf;
use tilewright::output::printable;
use tilewright::{DType, HeadDim, Tensor};

/// The head dimension of the tensors.
pub const HEAD_DIM: HeadDim = HeadDim::D128;
/// Their dtype.
pub const DTYPE: DType = DType::Bf16;

macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/", $name)))
    };
}

/// See tests/data/README.md for where they come from and their licence.
const FILES: [(&str, &[u8]); 2] = [file!("layer6-head1.safetensors"), file!("layer2-head5.safetensors")];

/// One layer's heads, on the CPU.
pub struct Layer {
    /// The file it comes from.
    pub path: PathBuf,
    /// Its number in the transformer.
    pub layer: String,
    /// Its heads' numbers.
    pub heads: String,
    /// t × h × w of its tokens, which are in raster order.
    pub grid: [usize; 3],
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}

/// Every layer that comes with the program.
pub fn layers() -> Result<Vec<Layer>, CliError> {
    FILES.iter().map(|&(name, bytes)| read(TensorFile::embedded(name, bytes)?)).collect()
}

/// The layers of these files.
pub fn layers_of(files: &[Source]) -> Result<Vec<Layer>, CliError> {
    files.iter().map(|file| read(TensorFile::read(file)?)).collect()
}

fn read(file: TensorFile) -> Result<Layer, CliError> {
    let tensor = |name| {
        let raw = file.half(name)?;
        if raw.bytes.is_empty() {
            return Err(CliError::NoElements { path: file.path().to_owned(), shape: raw.shape });
        }
        Ok::<_, CliError>(Tensor::from_bytes(raw.dtype, raw.bytes, &raw.shape)?)
    };
    let metadata = file.metadata();
    let fact = |name| {
        let fact = metadata.get(name).and_then(|fact| fact.split(' ').next()).unwrap_or("?");
        printable(fact).into_owned()
    };
    let grid = metadata.get("token_grid");
    let sides =
        grid.and_then(|grid| grid.split('x').map(|side| side.parse().ok()).collect::<Option<Vec<_>>>());
    let Some(Ok(grid)) = sides.map(<[usize; 3]>::try_from) else {
        return Err(CliError::NoTokenGrid { path: file.path().to_owned(), found: grid.cloned() });
    };
    Ok(Layer {
        path: file.path().to_owned(),
        layer: fact("layer"),
        heads: fact("heads"),
        grid,
        q: tensor("q")?,
        k: tensor("k")?,
        v: tensor("v")?,
    })
}
