//! NVRTC for a command that compiles.

use super::progress::note;
use tilewright::output::shown;
use tilewright::toolchain::{Environment, Toolchain, ToolchainError, install};

/// NVRTC as it is found. Where there is none it is installed, unless `offline`; that is said first.
pub fn find_or_install(offline: bool) -> Result<Toolchain, ToolchainError> {
    let environment = Environment::current();
    match Toolchain::find_in(&environment) {
        Err(ToolchainError::NotFound { .. }) if !offline => {
            let folder = environment.toolchain_folder().ok_or(ToolchainError::NoDataFolder)?;
            note(&format!(
                "there is no NVRTC on this machine: pip now downloads it (92 MB) into {}; with --offline nothing is \
                 downloaded",
                shown(&folder)
            ));
            install(&environment, &note)?;
            Toolchain::find_in(&environment)
        }
        found => found,
    }
}
