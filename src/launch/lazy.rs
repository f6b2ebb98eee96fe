//! A kernel's tuning space, prepared when it is first wanted: most calls want few of an attention's.

use super::{Request, Tuned};
use crate::Error;
use crate::device::CudaDevice;
use crate::tune::Policy;
use std::sync::{Arc, OnceLock};

/// A [`Tuned`] that is made at its first use. Clones, on other streams too, share what is made.
#[derive(Clone)]
pub(crate) struct Lazy {
    device: CudaDevice,
    policy: Policy,
    request: Arc<Request>,
    shared: Arc<OnceLock<Tuned>>,
    /// The same on this stream.
    own: OnceLock<Tuned>,
}

impl Lazy {
    pub(crate) fn new(device: &CudaDevice, request: Request, policy: Policy) -> Self {
        let (request, shared) = (Arc::new(request), Arc::default());
        Lazy { device: device.clone(), policy, request, shared, own: OnceLock::new() }
    }

    /// The same kernel on another stream of the same GPU.
    pub(crate) fn on(&self, device: &CudaDevice) -> Self {
        Lazy { device: device.clone(), own: OnceLock::new(), ..self.clone() }
    }

    /// The tuning space, prepared now if it is not yet.
    ///
    /// # Errors
    /// As [`Tuned::with_policy`].
    pub(crate) fn get(&self) -> Result<&Tuned, Error> {
        if let Some(own) = self.own.get() {
            return Ok(own);
        }
        let shared = match self.shared.get() {
            Some(shared) => shared,
            None => {
                let tuned = Tuned::with_policy(&self.device, &self.request, self.policy)?;
                // Another thread may have been first; its space is as good.
                self.shared.get_or_init(|| tuned)
            }
        };
        Ok(self.own.get_or_init(|| shared.on(&self.device)))
    }

    /// The tuning space if it is prepared.
    pub(crate) fn known(&self) -> Option<&Tuned> {
        self.own.get().or(self.shared.get())
    }
}
