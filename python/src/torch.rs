//! What is called of PyTorch: the few functions that a warm call needs, looked up once.

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use tilewright::DType;

/// PyTorch, once it was imported.
pub(crate) struct Torch {
    /// `torch.Tensor`.
    pub(crate) tensor: Py<PyAny>,
    empty_like: Py<PyAny>,
    /// `(device index) -> cudaStream_t`; absent in a build without CUDA.
    current_raw_stream: Option<Py<PyAny>>,
    dtypes: Vec<(DType, Py<PyAny>)>,
}

static TORCH: PyOnceLock<Torch> = PyOnceLock::new();

impl Torch {
    /// Looks everything up. The package calls it the first time it meets PyTorch.
    pub(crate) fn bind(torch: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = torch.py();
        let get = |name: &str| torch.getattr(name).map(Bound::unbind);
        let dtypes = [
            (DType::F16, "float16"),
            (DType::Bf16, "bfloat16"),
            (DType::F32, "float32"),
            (DType::I32, "int32"),
            (DType::U8, "uint8"),
        ];
        let stream = torch.getattr("_C")?.getattr("_cuda_getCurrentRawStream").ok().map(Bound::unbind);
        let bound = Torch {
            tensor: get("Tensor")?,
            empty_like: get("empty_like")?,
            current_raw_stream: stream,
            dtypes: dtypes
                .into_iter()
                .map(|(dtype, name)| Ok((dtype, get(name)?)))
                .collect::<PyResult<_>>()?,
        };
        // A second call finds the same functions.
        let _ = TORCH.set(py, bound);
        Ok(())
    }

    /// PyTorch, where it is bound.
    pub(crate) fn get(py: Python<'_>) -> Option<&Torch> {
        TORCH.get(py)
    }

    /// The element type of a `torch.dtype`; `None` for those no kernel takes.
    pub(crate) fn dtype(&self, dtype: &Bound<'_, PyAny>) -> Option<DType> {
        self.dtypes.iter().find(|(_, known)| known.is(dtype)).map(|(dtype, _)| *dtype)
    }

    fn torch_dtype(&self, dtype: DType) -> PyResult<&Py<PyAny>> {
        let known = self.dtypes.iter().find(|(known, _)| *known == dtype).map(|(_, dtype)| dtype);
        known.ok_or_else(|| PyRuntimeError::new_err(format!("{dtype} has no torch.dtype")))
    }

    /// PyTorch's current stream of a GPU, as the driver knows it.
    pub(crate) fn stream(&self, py: Python<'_>, ordinal: usize) -> PyResult<usize> {
        match &self.current_raw_stream {
            Some(stream) => stream.call1(py, (ordinal,))?.extract(py),
            None => Err(PyRuntimeError::new_err("this PyTorch has no CUDA, but a tensor of it is on a GPU")),
        }
    }

    /// `torch.empty_like(tensor)`: dense, the dimensions in memory as those of `tensor`.
    pub(crate) fn empty_like<'py>(&self, tensor: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.empty_like.bind(tensor.py()).call1((tensor,))
    }

    /// `tensor.new_empty(shape, dtype=…)`: contiguous, on the same device.
    pub(crate) fn empty_beside<'py>(
        &self,
        tensor: &Bound<'py, PyAny>,
        dtype: DType,
        shape: &[usize],
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = tensor.py();
        let options = PyDict::new(py);
        options.set_item(intern!(py, "dtype"), self.torch_dtype(dtype)?)?;
        tensor.call_method(intern!(py, "new_empty"), (PyTuple::new(py, shape)?,), Some(&options))
    }
}
