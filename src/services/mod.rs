//! What kernels of a GPU are made with: a cache, NVRTC, a policy of tuning, and whom to tell of what takes long.
//!
//! A device goes by the environment (`TILEWRIGHT_CACHE`, `TILEWRIGHT_NVRTC`, `TILEWRIGHT_POLICY`, …) and tells nobody, unless it is
//! given services of its own:
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! use tilewright::cache::KernelCache;
//! use tilewright::services::{Policy, Services};
//! use tilewright::Device;
//!
//! let services = Services::builder()
//!     .cache(KernelCache::at(&folder.path().join("kernels"))?)
//!     .policy(Policy::FirstValid)
//!     .on_first_use(|step| eprintln!("{step}"))
//!     .build();
//! let device = Device::best().with_services(&services);
//! # Ok(())
//! # }
//! ```

mod policy;
mod progress;
#[cfg(feature = "terminal")]
mod terminal;
#[cfg(test)]
mod tests;

use crate::cache::{CacheError, KernelCache};
use crate::toolchain::{Environment, Toolchain, ToolchainError};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use policy::{POLICY_VARIABLE, Policy, PolicyError};
pub use progress::{FirstUse, Progress};
#[cfg(feature = "terminal")]
pub use terminal::line_on_stderr;

/// The services of a device. Cloning is cheap, and clones are one; what is not given is looked up when it is first needed. Make few:
/// kernels that were loaded with them stay loaded for the life of the process.
#[derive(Clone)]
pub struct Services {
    inner: Arc<Inner>,
}

struct Inner {
    /// No other services of this process have it.
    number: u64,
    cache: OnceLock<Option<KernelCache>>,
    environment: Environment,
    toolchain: Mutex<Option<Toolchain>>,
    policy: Option<Policy>,
    listener: Option<Listener>,
}

type Listener = Box<dyn Fn(&FirstUse<'_>) + Send + Sync>;

impl Services {
    /// Those of the environment, the same for all devices of this process.
    pub fn from_env() -> Self {
        static OF_THE_PROCESS: OnceLock<Services> = OnceLock::new();
        OF_THE_PROCESS.get_or_init(|| Services::builder().build()).clone()
    }

    /// Services of the caller's.
    pub fn builder() -> ServicesBuilder {
        ServicesBuilder::default()
    }

    /// The cache of cubins and tuning records; none where the user has none, or it cannot be opened.
    ///
    /// # Errors
    /// A cache that others may write to. Any other trouble with it costs the caching alone, with a warning to `tracing`.
    pub fn cache(&self) -> Result<Option<&KernelCache>, CacheError> {
        if let Some(cache) = self.inner.cache.get() {
            return Ok(cache.as_ref());
        }
        let cache = match KernelCache::open() {
            Ok(cache) => Some(cache),
            Err(error) if error.is_unsafe() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "kernels are compiled and tuned in every process");
                None
            }
        };
        Ok(self.inner.cache.get_or_init(|| cache).as_ref())
    }

    /// NVRTC, found at the first call.
    ///
    /// # Errors
    /// Those of [`Toolchain::find_in`].
    pub fn toolchain(&self) -> Result<Toolchain, ToolchainError> {
        let mut found = self.inner.toolchain.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(toolchain) = &*found {
            return Ok(toolchain.clone());
        }
        let toolchain = Toolchain::find_in(&self.inner.environment)?;
        if let Ok(Some(cache)) = self.cache() {
            cache.remember_nvrtc(&toolchain, &self.inner.environment);
        }
        Ok(found.insert(toolchain).clone())
    }

    /// NVRTC's version, also where it is not loaded yet, as the cache remembers it from another process; none without NVRTC.
    pub fn nvrtc_version(&self) -> Option<(i32, i32)> {
        let loaded = self.inner.toolchain.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let remembered = || self.cache().ok().flatten()?.nvrtc_version(&self.inner.environment);
        let version = |toolchain: Toolchain| toolchain.version();
        loaded.map(version).or_else(remembered).or_else(|| self.toolchain().ok().map(version))
    }

    /// How schedules are chosen where the attention's builder does not say.
    ///
    /// # Errors
    /// [`PolicyError`] where `TILEWRIGHT_POLICY` is none and none was given.
    pub fn policy(&self) -> Result<Policy, PolicyError> {
        self.inner.policy.map_or_else(Policy::from_env, Ok)
    }

    pub(crate) fn number(&self) -> u64 {
        self.inner.number
    }

    /// Tells whoever waits how far a kernel's first use is.
    pub(crate) fn tell(&self, step: &FirstUse<'_>) {
        if let Some(listener) = &self.inner.listener {
            listener(step);
        }
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services")
            .field("cache", &self.inner.cache.get())
            .field("policy", &self.inner.policy)
            .finish_non_exhaustive()
    }
}

/// Collects services; what is not given is the environment's.
#[derive(Default)]
#[must_use = "call `.build()`"]
pub struct ServicesBuilder {
    cache: Option<Option<KernelCache>>,
    environment: Option<Environment>,
    toolchain: Option<Toolchain>,
    policy: Option<Policy>,
    listener: Option<Listener>,
}

impl ServicesBuilder {
    /// Keeps cubins and tuning records in this cache.
    pub fn cache(mut self, cache: KernelCache) -> Self {
        self.cache = Some(Some(cache));
        self
    }

    /// Keeps nothing: every process compiles and tunes.
    pub fn no_cache(mut self) -> Self {
        self.cache = Some(None);
        self
    }

    /// Looks for NVRTC in this environment.
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Compiles with this NVRTC.
    pub fn toolchain(mut self, toolchain: Toolchain) -> Self {
        self.toolchain = Some(toolchain);
        self
    }

    /// Chooses schedules so, where the attention's builder does not say otherwise.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Is told, from any thread, of every step while a kernel is compiled and tuned; [`Progress::Done`] is the last. It must not call
    /// an attention.
    pub fn on_first_use(mut self, listener: impl Fn(&FirstUse<'_>) + Send + Sync + 'static) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// The services.
    pub fn build(self) -> Services {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let ServicesBuilder { cache, environment, toolchain, policy, listener } = self;
        let inner = Inner {
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            cache: cache.map_or_else(OnceLock::new, OnceLock::from),
            environment: environment.unwrap_or_else(Environment::current),
            toolchain: Mutex::new(toolchain),
            policy,
            listener,
        };
        Services { inner: Arc::new(inner) }
    }
}

impl fmt::Debug for ServicesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServicesBuilder")
            .field("cache", &self.cache)
            .field("environment", &self.environment)
            .field("toolchain", &self.toolchain)
            .field("policy", &self.policy)
            .field("listener", &self.listener.is_some())
            .finish()
    }
}
