//! The native module of the Python package `tilewright`.
#![deny(missing_docs)]

mod attentions;
mod backward;
mod call;
mod dlpack;
mod error;
mod functions;
mod grid;
mod make;
mod ops;
mod registry;
mod services;
mod torch;
mod view;
mod work;

use pyo3::prelude::*;

/// Tilewright's native module. Use the package `tilewright`, which wraps it.
#[pymodule]
mod _native {
    use super::*;

    #[pymodule_export]
    use super::backward::attention_backward;
    #[pymodule_export]
    use super::error::Error;
    #[pymodule_export]
    use super::functions::{DeviceFunction, device_function};
    #[pymodule_export]
    use super::grid::TokenGrid;
    #[pymodule_export]
    use super::ops::{attention, block_mask, sparse_attention};

    /// The number of the mask function that is built in: queries see the keys up to their own position.
    #[pymodule_export]
    const CAUSAL: u64 = super::registry::CAUSAL;

    /// The package's version.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    /// Keys of a run of the tail "row", unless blocks ask for more.
    #[pymodule_export]
    const ROW_KEYS: usize = tilewright::Tail::ROW_KEYS;

    /// The sparse blocks there are, (queries, keys); the default first.
    #[pyfunction]
    fn block_sizes() -> Vec<(usize, usize)> {
        tilewright::BlockSize::ALL.iter().map(|blocks| (blocks.q(), blocks.kv())).collect()
    }

    /// Tells where this Python looks for packages: NVRTC is one of them, as a rule.
    #[pyfunction]
    fn set_package_folders(folders: Vec<std::path::PathBuf>) {
        super::services::set_package_folders(folders);
    }

    /// Looks up what calls need of PyTorch.
    #[pyfunction]
    fn bind_torch(torch: &Bound<'_, PyAny>) -> PyResult<()> {
        super::torch::Torch::bind(torch)
    }

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
