//! Where cubins come from: the cache, else NVRTC.

use crate::Error;
use crate::cache::{CubinKey, KernelCache, Origin};
use crate::codegen::Variant;
use crate::compile::{Cubin, OPTIONS, embedded, in_parallel};
use crate::device::{CudaDevice, driver_version};
use crate::services::Services;
use crate::toolchain::ToolchainError;
use std::sync::OnceLock;

/// A device's services, and its cache once it is opened.
#[derive(Clone, Copy)]
pub(super) struct Store<'a> {
    services: &'a Services,
    cache: Option<&'a KernelCache>,
}

impl<'a> Store<'a> {
    /// The store of a device.
    ///
    /// # Errors
    /// A cache that others may write to.
    pub(super) fn of(device: &'a CudaDevice) -> Result<Self, Error> {
        let services = device.services();
        Ok(Store { services, cache: services.cache()? })
    }

    /// The cache, where there is one.
    pub(super) fn cache(&self) -> Option<&'a KernelCache> {
        self.cache
    }

    /// The cubin of each variant, in order. What the cache does not hold is compiled, in parallel on all cores.
    pub(super) fn cubins(
        &self,
        arch: &str,
        variants: &[&Variant],
        done: impl Fn(Origin) + Sync + Send,
    ) -> Vec<Result<Cubin, Error>> {
        // The version is part of the key. A warm start knows it without loading NVRTC, and embedded cubins need none.
        let version = OnceLock::new();
        let version = || version.get_or_init(|| self.services.nvrtc_version());
        in_parallel(variants, |variant| {
            let (cubin, origin) = match embedded(&variant.fingerprint, arch) {
                Some(cubin) => (cubin, Origin::Cache),
                None => match version() {
                    Some(version) => self.cubin(arch, variant, *version)?,
                    // A machine without NVRTC runs what a bundle brought.
                    None => match self.bundled(arch, variant) {
                        Some(cubin) => (cubin, Origin::Cache),
                        None => return Err(self.no_toolchain()),
                    },
                },
            };
            done(origin);
            Ok(cubin)
        })
    }

    /// Whether anything can be compiled here.
    pub(super) fn has_nvrtc(&self) -> bool {
        self.services.nvrtc_version().is_some()
    }

    /// Why there is no NVRTC.
    fn no_toolchain(&self) -> Error {
        match self.services.toolchain() {
            Err(error) => error.into(),
            // It was installed a moment ago.
            Ok(toolchain) => ToolchainError::JustInstalled { library: toolchain.library().to_owned() }.into(),
        }
    }

    fn cubin(&self, arch: &str, variant: &Variant, version: (i32, i32)) -> Result<(Cubin, Origin), Error> {
        let Variant { name, source, .. } = variant;
        let compile =
            || -> Result<Cubin, Error> { Ok(self.services.toolchain()?.compile(name, source, arch)?) };
        match self.cache {
            Some(cache) => {
                cache.get_or_compile(&CubinKey::new(name, arch, source, OPTIONS, version), source, compile)
            }
            None => Ok((compile()?, Origin::Compiled)),
        }
    }

    fn bundled(&self, arch: &str, variant: &Variant) -> Option<Cubin> {
        // A driver loads cubins of its own CUDA major version and of older ones.
        let newest = driver_version().map_or(i32::MAX, |(major, _)| major);
        self.cache?.find(&variant.name, arch, &variant.source, |(major, _)| major <= newest)
    }

    /// The cubin of a variant if the program or the cache holds it, whatever NVRTC made it. Nothing is compiled.
    pub(super) fn cached(&self, arch: &str, variant: &Variant) -> Option<Cubin> {
        embedded(&variant.fingerprint, arch).or_else(|| self.bundled(arch, variant))
    }
}
