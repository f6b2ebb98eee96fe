//! What is called of PyTorch: the few functions that a warm call needs, looked up once.

use crate::dlpack::Dlpack;
use crate::error::to_python;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use tilewright::DType;
use tilewright::device::expect_own_process;

/// PyTorch, once it was imported.
pub(crate) struct Torch {
    /// `torch.Tensor`.
    pub(crate) tensor: Py<PyAny>,
    /// How its tensors are looked at in one call; absent before 2.10.
    pub(crate) dlpack: Option<Dlpack>,
    empty_like: Py<PyAny>,
    /// `torch.Tensor.is_neg`.
    is_neg: Py<PyAny>,
    /// `(device index) -> cudaStream_t`; absent in a build without CUDA.
    current_raw_stream: Option<Py<PyAny>>,
    /// Absent in a build without CUDA.
    allocator: Option<Allocator>,
    dtypes: Vec<(DType, Py<PyAny>)>,
}

/// PyTorch's allocator of GPU memory, below its tensors.
struct Allocator {
    /// `(bytes, cudaStream_t) -> address`, on the current GPU.
    alloc: Py<PyAny>,
    /// `(address)`: memory goes back, to be handed out again in the order of its stream.
    delete: Py<PyAny>,
    /// `() -> device index`.
    current: Py<PyAny>,
}

/// Memory of PyTorch's for a call to work in. It goes back to PyTorch's allocator when dropped, which hands it out again in the order
/// of the stream; within a graph that is captured, in the order of the graph.
pub(crate) struct Scratch<'py> {
    pub(crate) address: u64,
    owner: Owner<'py>,
}

enum Owner<'py> {
    /// Of no bytes.
    Nobody,
    Allocator {
        delete: &'py Bound<'py, PyAny>,
        address: Bound<'py, PyAny>,
    },
    Tensor {
        _tensor: Bound<'py, PyAny>,
    },
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if let Owner::Allocator { delete, address } = &self.owner {
            // It fails for addresses that are not the allocator's own alone.
            let _ = delete.call1((address,));
        }
    }
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
        let tensor = torch.getattr("Tensor")?;
        let core = torch.getattr("_C")?;
        let of_core = |name: &str| core.getattr(name).ok().map(Bound::unbind);
        let allocator = || {
            Some(Allocator {
                alloc: of_core("_cuda_cudaCachingAllocator_raw_alloc")?,
                delete: of_core("_cuda_cudaCachingAllocator_raw_delete")?,
                current: of_core("_cuda_getDevice")?,
            })
        };
        let bound = Torch {
            is_neg: tensor.getattr("is_neg")?.unbind(),
            tensor: tensor.clone().unbind(),
            dlpack: Dlpack::of(&tensor),
            empty_like: get("empty_like")?,
            current_raw_stream: of_core("_cuda_getCurrentRawStream"),
            allocator: allocator(),
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

    /// The tensor that a lazily negated one stands for: `x.conj().imag` is a view whose memory holds the values that are still to be
    /// negated. `None` for what is as its memory says, and for what is no tensor.
    pub(crate) fn resolved<'py>(&self, object: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = object.py();
        // A lazy conjugate is of complex numbers, which no kernel takes.
        if !object.is_instance(self.tensor.bind(py))?
            || !self.is_neg.bind(py).call1((object,))?.is_truthy()?
        {
            return Ok(None);
        }
        object.call_method0(intern!(py, "resolve_neg")).map(Some)
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
        // PyTorch says of a forked process no more than that CUDA is not initialised.
        expect_own_process().map_err(|error| to_python(error.into()))?;
        match &self.current_raw_stream {
            Some(stream) => stream.call1(py, (ordinal,))?.extract(py),
            None => Err(PyRuntimeError::new_err("this PyTorch has no CUDA, but a tensor of it is on a GPU")),
        }
    }

    /// Scratch memory on the GPU of `tensor`, for the current stream there.
    pub(crate) fn scratch<'py>(
        &'py self,
        tensor: &Bound<'py, PyAny>,
        ordinal: usize,
        stream: usize,
        bytes: usize,
    ) -> PyResult<Scratch<'py>> {
        let py = tensor.py();
        if bytes == 0 {
            return Ok(Scratch { address: 0, owner: Owner::Nobody });
        }
        // A tensor's way through the dispatcher costs some 4 µs more.
        if let Some(Allocator { alloc, delete, current }) = &self.allocator
            && current.call0(py)?.extract::<usize>(py)? == ordinal
        {
            let address = alloc.bind(py).call1((bytes, stream))?;
            let owner = Owner::Allocator { delete: delete.bind(py), address: address.clone() };
            return Ok(Scratch { address: address.extract()?, owner });
        }
        let tensor = self.empty_beside(tensor, DType::U8, &[bytes])?;
        let address = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
        Ok(Scratch { address, owner: Owner::Tensor { _tensor: tensor } })
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
