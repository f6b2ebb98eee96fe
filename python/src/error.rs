//! Errors as Python exceptions.

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use tilewright::TensorError;
use tilewright::toolchain::ToolchainError;

pyo3::create_exception!(
    tilewright,
    Error,
    PyRuntimeError,
    "What a call could not do for a reason other than its arguments: a GPU, NVRTC, the cache, or something not there yet."
);

/// `TypeError` for a dtype, `ValueError` for other arguments, `tilewright.Error` for the rest.
pub(crate) fn to_python(error: tilewright::Error) -> PyErr {
    use tilewright::Error as E;
    let mut text = error.to_string();
    if let E::Toolchain(ToolchainError::NotFound { .. }) = &error {
        text += "\nFrom Python: `pip install 'tilewright[cuda]'` brings it.";
    }
    if let E::CacheOnly { .. } = &error {
        text += "\nFrom Python: run the program once with `TILEWRIGHT_POLICY=tune`.";
    }
    match error {
        E::Tensor(TensorError::DType { .. }) => PyTypeError::new_err(text),
        E::Tensor(_)
        | E::Select(_)
        | E::Mask(_)
        | E::Tail(_)
        | E::Grid(_)
        | E::HeadDim(_)
        | E::Bind(_)
        | E::Capture(_)
        | E::Scale { .. }
        | E::DynamicFunction(_)
        | E::Function { .. } => PyValueError::new_err(text),
        _ => Error::new_err(text),
    }
}
