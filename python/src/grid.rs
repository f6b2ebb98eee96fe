//! Token grids: the order of a video's tokens, and the kernel that moves rows.

use crate::services::services;
use crate::torch::Torch;
use crate::view::{Kind, View};
use crate::work::apart;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tilewright::{BlockSize, Device, Tensor};

/// Grids live as long as the process, one of each kind: a launch on PyTorch's stream may read an order on the GPU after the Python
/// object is gone. That is 8 bytes a token for every size of video.
static GRIDS: Mutex<BTreeMap<Key, tilewright::TokenGrid>> = Mutex::new(BTreeMap::new());

/// Grid, tile, tokens before and after, block.
type Key = ([usize; 3], Option<[usize; 3]>, usize, usize, (usize, usize));

/// The order of the tokens of a video. Use `tilewright.TokenGrid`, which wraps it.
#[pyclass(frozen)]
pub(crate) struct TokenGrid(tilewright::TokenGrid);

#[pymethods]
impl TokenGrid {
    /// Tokens of t × h × w, with `before` and `after` others around them.
    #[new]
    fn new(
        py: Python<'_>,
        grid: [usize; 3],
        tile: Option<[usize; 3]>,
        before: usize,
        after: usize,
        block_size: (usize, usize),
    ) -> PyResult<Self> {
        let key = (grid, tile, before, after, block_size);
        let grids = || GRIDS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = grids().get(&key) {
            return Ok(Self(known.clone()));
        }
        let made = apart(py, || {
            let blocks = BlockSize::new(block_size.0, block_size.1)?;
            let builder = tilewright::TokenGrid::builder(grid).blocks(blocks).before(before).after(after);
            if let Some(tile) = tile { builder.tile(tile) } else { builder }.build()
        })?;
        Ok(Self(grids().entry(key).or_insert(made).clone()))
    }

    /// t, h and w.
    #[getter]
    fn grid(&self) -> (usize, usize, usize) {
        self.0.grid().into()
    }

    /// The tile: t, h and w.
    #[getter]
    fn tile(&self) -> (usize, usize, usize) {
        self.0.tile().into()
    }

    /// The sizes in words.
    #[getter]
    fn description(&self) -> String {
        self.0.to_string()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// The token at each position.
    fn order(&self) -> Vec<i32> {
        self.0.order().to_vec()
    }

    /// The position of each token.
    fn inverse(&self) -> Vec<i32> {
        self.0.inverse().to_vec()
    }

    /// The block of keys a token lies in.
    fn block_of(&self, token: i64) -> PyResult<usize> {
        let block = usize::try_from(token).ok().and_then(|token| self.0.block_of(token));
        block.ok_or_else(|| {
            let tokens = self.0.len();
            PyIndexError::new_err(format!(
                "there is no token {token}, tokens are numbered 0 to {}",
                tokens - 1
            ))
        })
    }

    /// Moves the rows of a CUDA tensor `[tokens, d]`, `[batch, tokens, d]` or `[batch, heads, tokens, d]` into another of the
    /// same shape, on PyTorch's current stream.
    fn r#move(
        &self,
        py: Python<'_>,
        tensor: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        restore: bool,
    ) -> PyResult<()> {
        let rank: usize = tensor.call_method0("dim")?.extract()?;
        match rank {
            2 => self.move_rows::<2>(py, tensor, out, restore),
            3 => self.move_rows::<3>(py, tensor, out, restore),
            4 => self.move_rows::<4>(py, tensor, out, restore),
            _ => Err(PyValueError::new_err(format!("the tensor has {rank} dimensions, needed 2 to 4"))),
        }
    }
}

impl TokenGrid {
    fn move_rows<const N: usize>(
        &self,
        py: Python<'_>,
        tensor: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        restore: bool,
    ) -> PyResult<()> {
        let from = View::<N>::any("the tensor", Kind::Torch, tensor)?;
        let to = View::<N>::output("the result", Kind::Torch, out)?;
        let (Some(ordinal), Some(torch)) = (from.ordinal, Torch::get(py)) else {
            return Err(PyValueError::new_err("the tensor is on cpu, needed on a GPU"));
        };
        let stream = torch.stream(py, ordinal)?;
        // SAFETY: the caller holds both tensors until the launch is on the stream, and PyTorch frees in the stream's order.
        let (from, mut to): (Tensor, Tensor) =
            unsafe { (from.on_gpu("the tensor")?, to.on_gpu("the result")?) };
        apart(py, || {
            let Device::Cuda(device) = Device::cuda(ordinal)?.with_services(&services()) else {
                unreachable!("a GPU was asked for");
            };
            // SAFETY: PyTorch's streams belong to the primary context and are not destroyed; the grid stays in `GRIDS`.
            let grid = unsafe { self.0.on_stream(&device, stream as *mut std::ffi::c_void) };
            if restore { grid.restore_into(&from, &mut to) } else { grid.regroup_into(&from, &mut to) }
        })
    }
}
