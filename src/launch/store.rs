//! Where cubins come from: the cache, else NVRTC.

use crate::Error;
use crate::cache::{CubinKey, KernelCache, Origin};
use crate::codegen::Variant;
use crate::compile::{Cubin, OPTIONS, embedded, in_parallel};
use crate::device::driver_version;
use crate::toolchain::{Environment, Toolchain, ToolchainError};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The process's cache and NVRTC; both are opened when they are first needed.
pub(crate) struct Store {
    cache: Option<KernelCache>,
    environment: Environment,
    toolchain: Mutex<Option<Toolchain>>,
}

impl Store {
    /// The store of this process.
    ///
    /// # Errors
    /// A cache that others may write to. Any other trouble with the cache costs the caching alone, with a warning.
    pub(crate) fn global() -> Result<&'static Store, Error> {
        static STORE: OnceLock<Store> = OnceLock::new();
        if let Some(store) = STORE.get() {
            return Ok(store);
        }
        let cache = match KernelCache::open() {
            Ok(cache) => Some(cache),
            Err(error) if error.is_unsafe() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "kernels are compiled and tuned in every process");
                None
            }
        };
        let environment = Environment::current();
        Ok(STORE.get_or_init(|| Store { cache, environment, toolchain: Mutex::new(None) }))
    }

    /// The cache, where there is one.
    pub(crate) fn cache(&self) -> Option<&KernelCache> {
        self.cache.as_ref()
    }

    /// The process's NVRTC, found at the first compile.
    fn toolchain(&self) -> Result<Toolchain, ToolchainError> {
        let mut found = self.toolchain.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(toolchain) = &*found {
            return Ok(toolchain.clone());
        }
        let toolchain = Toolchain::find_in(&self.environment)?;
        if let Some(cache) = &self.cache {
            cache.remember_nvrtc(&toolchain, &self.environment);
        }
        Ok(found.insert(toolchain).clone())
    }

    /// The cubin of each variant, in order. What the cache does not hold is compiled, in parallel on all cores.
    pub(crate) fn cubins(
        &self,
        arch: &str,
        variants: &[&Variant],
        done: impl Fn(Origin) + Sync + Send,
    ) -> Vec<Result<Cubin, Error>> {
        // The version is part of the key. A warm start knows it without loading NVRTC, and embedded cubins need none.
        let version = OnceLock::new();
        let version = || {
            version.get_or_init(|| {
                let remembered = self.cache.as_ref().and_then(|cache| cache.nvrtc_version(&self.environment));
                remembered.or_else(|| self.toolchain().ok().map(|toolchain| toolchain.version()))
            })
        };
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
    pub(crate) fn has_nvrtc(&self) -> bool {
        let remembered = self.cache.as_ref().and_then(|cache| cache.nvrtc_version(&self.environment));
        remembered.is_some() || self.toolchain().is_ok()
    }

    /// Why there is no NVRTC.
    fn no_toolchain(&self) -> Error {
        match self.toolchain() {
            Err(error) => error.into(),
            // It was installed a moment ago.
            Ok(toolchain) => ToolchainError::JustInstalled { library: toolchain.library().to_owned() }.into(),
        }
    }

    fn cubin(&self, arch: &str, variant: &Variant, version: (i32, i32)) -> Result<(Cubin, Origin), Error> {
        let Variant { name, source, .. } = variant;
        let compile = || -> Result<Cubin, Error> { Ok(self.toolchain()?.compile(name, source, arch)?) };
        match &self.cache {
            Some(cache) => {
                cache.get_or_compile(&CubinKey::new(name, arch, source, OPTIONS, version), source, compile)
            }
            None => Ok((compile()?, Origin::Compiled)),
        }
    }

    fn bundled(&self, arch: &str, variant: &Variant) -> Option<Cubin> {
        // A driver loads cubins of its own CUDA major version and of older ones.
        let newest = driver_version().map_or(i32::MAX, |(major, _)| major);
        self.cache.as_ref()?.find(&variant.name, arch, &variant.source, |(major, _)| major <= newest)
    }

    /// The cubin of a variant if the program or the cache holds it, whatever NVRTC made it. Nothing is compiled.
    pub(crate) fn cached(&self, arch: &str, variant: &Variant) -> Option<Cubin> {
        embedded(&variant.fingerprint, arch).or_else(|| self.bundled(arch, variant))
    }
}
