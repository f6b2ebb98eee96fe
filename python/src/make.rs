//! New tensors of the framework that a call's own tensors are of.

use crate::torch::Torch;
use crate::view::{Kind, View};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use tilewright::DType;

/// A tensor like `q`: its shape and dtype, dense.
pub(crate) fn like<'py>(kind: Kind, q: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    match kind {
        Kind::Torch => torch(q.py())?.empty_like(q),
        Kind::Numpy => q.py().import("numpy")?.call_method1("empty_like", (q,)),
    }
}

/// A contiguous tensor where `q` is.
pub(crate) fn beside<'py>(
    kind: Kind,
    q: &Bound<'py, PyAny>,
    dtype: DType,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    match kind {
        Kind::Torch => torch(q.py())?.empty_beside(q, dtype, shape),
        Kind::Numpy => {
            let shape = PyTuple::new(q.py(), shape)?;
            let numpy = q.py().import("numpy")?;
            match dtype {
                DType::I32 => numpy.call_method1("empty", (shape, "int32")),
                DType::F32 => numpy.call_method1("empty", (shape, "float32")),
                // numpy has no bfloat16 of its own: q's type is whoever's made q.
                _ => numpy.call_method1("empty", (shape, q.getattr("dtype")?)),
            }
        }
    }
}

/// Looks at a tensor that was just made.
pub(crate) fn view<const N: usize>(kind: Kind, made: &Bound<'_, PyAny>) -> PyResult<View<N>> {
    View::output("the result", kind, made)
}

pub(crate) fn torch(py: Python<'_>) -> PyResult<&Torch> {
    Torch::get(py).ok_or_else(|| crate::error::Error::new_err("PyTorch was not imported"))
}
