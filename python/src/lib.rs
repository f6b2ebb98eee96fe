//! The native module of the Python package `tilewright`.
#![deny(missing_docs)]

mod error;
mod functions;

use pyo3::prelude::*;

/// Tilewright's native module. Use the package `tilewright`, which wraps it.
#[pymodule]
mod _native {
    use super::*;

    #[pymodule_export]
    use super::error::Error;
    #[pymodule_export]
    use super::functions::DeviceFunction;

    /// The package's version.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    /// The device a call would run on by default, in words: the first GPU, or the CPU.
    #[pyfunction]
    fn best_device(py: Python<'_>) -> String {
        py.detach(|| tilewright::Device::best().to_string())
    }

    /// Checks that GPU `ordinal` can be used, and says what it is.
    #[pyfunction]
    fn gpu_name(py: Python<'_>, ordinal: usize) -> PyResult<String> {
        py.detach(|| tilewright::Device::cuda(ordinal).map(|device| device.to_string()))
            .map_err(|error| error::to_python(error.into()))
    }
}
