//! The tensors of the demonstration: one head each of two layers of a trained video transformer. They are part of the
//! program, so that it shows the same wherever it is installed.

use crate::cli::error::CliError;
use crate::cli::tensor_file::TensorFile;
use tilewright::{DType, HeadDim, Tensor};

/// The head dimension of the tensors.
pub const HEAD_DIM: HeadDim = HeadDim::D128;
/// Their dtype.
pub const DTYPE: DType = DType::Bf16;
/// Tokens of a video frame: 16 × 28.
pub const FRAME: usize = 448;

macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/", $name)))
    };
}

/// See tests/data/README.md for where they come from and their licence.
const FILES: [(&str, &[u8]); 2] = [file!("layer6-head1.safetensors"), file!("layer2-head5.safetensors")];

/// One layer's heads, on the CPU.
pub struct Layer {
    /// Its number in the transformer.
    pub layer: String,
    /// Its heads' numbers.
    pub heads: String,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}

/// Every layer there is.
pub fn layers() -> Result<Vec<Layer>, CliError> {
    FILES.iter().map(|&(name, bytes)| read(name, bytes)).collect()
}

fn read(name: &str, bytes: &'static [u8]) -> Result<Layer, CliError> {
    let file = TensorFile::embedded(name, bytes)?;
    let tensor = |name| {
        let raw = file.half(name)?;
        Ok::<_, CliError>(Tensor::from_bytes(raw.dtype, raw.bytes, &raw.shape)?)
    };
    let metadata = file.metadata();
    let fact = |name| metadata.get(name).and_then(|fact| fact.split(' ').next()).unwrap_or("?").to_owned();
    Ok(Layer {
        layer: fact("layer"),
        heads: fact("heads"),
        q: tensor("q")?,
        k: tensor("k")?,
        v: tensor("v")?,
    })
}
