//! What kernels are made with in a Python process: its own packages may hold NVRTC, and whoever waits is told why.

use std::path::PathBuf;
use std::sync::OnceLock;
use tilewright::services::{Services, line_on_stderr};
use tilewright::toolchain::Environment;

static SERVICES: OnceLock<Services> = OnceLock::new();

/// Says where this Python looks for packages (`sys.path`). The first call counts, which the package makes when it is imported.
pub(crate) fn set_package_folders(folders: Vec<PathBuf>) {
    let environment = Environment::current().with_python_folders(folders);
    SERVICES
        .get_or_init(|| Services::builder().environment(environment).on_first_use(line_on_stderr()).build());
}

/// The services of this process.
pub(crate) fn services() -> Services {
    SERVICES.get().cloned().unwrap_or_else(Services::from_env)
}
