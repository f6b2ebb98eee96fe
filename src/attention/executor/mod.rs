//! Who runs a plan: the processor, a GPU, or nobody where there is nothing to do.

mod cpu;
mod nothing;

pub(super) use cpu::Cpu;
pub(super) use nothing::{Nothing, empty_lists, unattended};

use super::work::{Inputs, Kind, Ranked, Step};
use super::{MaskLists, Output, Rule, Sizes};
use crate::device::{CudaDevice, Device};
use crate::launch::Tuned;
use crate::operands::{Gradients, Upstream};
use crate::tune::Bucket;
use crate::{BlockMask, Error, Tensor};
use std::ffi::c_void;
use std::sync::Arc;

/// What every call of a plan goes by.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) device: &'a Device,
    pub(super) rule: &'a Rule,
    pub(super) sizes: &'a Sizes,
    /// The share of blocks kept, where it is known.
    pub(super) density: Option<f64>,
}

impl<'a> Call<'a> {
    /// The GPU that memory of a caller's is on.
    ///
    /// # Errors
    /// [`Error::NotOnGpu`] on the processor, which works in memory of its own.
    pub(super) fn cuda(&self) -> Result<&'a CudaDevice, Error> {
        self.device.as_cuda().ok_or(Error::NotOnGpu { what: "memory to write into" })
    }
}

/// What computes a rule. Arguments were checked, and are of the call's sizes.
pub(super) trait Executor: Send + Sync {
    /// The blocks that the rule selects.
    fn mask(&self, call: &Call<'_>, ranked: Ranked<'_>) -> Result<BlockMask, Error>;

    /// `out` and `lse` over a mask.
    fn attend(
        &self,
        call: &Call<'_>,
        inputs: Inputs<'_>,
        mask: &BlockMask,
    ) -> Result<(Tensor, Tensor), Error>;

    /// The gradients of what was made over a mask.
    fn backward(&self, call: &Call<'_>, upstream: Upstream<'_>, mask: &BlockMask)
    -> Result<Gradients, Error>;

    /// Selects and attends, into memory that a call of these sizes left. `lists` are those of the output's mask.
    fn forward_into(
        &self,
        call: &Call<'_>,
        inputs: Inputs<'_>,
        output: &mut Output,
        lists: &mut MaskLists,
        scratch: &mut Tensor,
    ) -> Result<(), Error>;

    /// Works in memory of the caller's, where that is possible.
    fn run(&self, call: &Call<'_>, _: Kind<'_>, _: &mut Tensor) -> Result<(), Error> {
        call.cuda().map(drop)
    }

    /// The bytes of scratch that [`run`](Self::run) wants.
    fn scratch_bytes(&self, _: &Call<'_>, _: Step<'_>) -> Result<usize, Error> {
        Ok(0)
    }

    /// Whether every kernel is chosen, so that a call only launches.
    fn is_warm(&self, _: &Call<'_>, _: Step<'_>) -> bool {
        true
    }

    /// The stages of a call that were ever wanted, in the order they run, each with the sizes that its kernel is chosen by.
    fn stages(&self, _: &Call<'_>) -> Vec<(&Tuned, Bucket)> {
        Vec::new()
    }

    /// The same on a stream of the caller's, and the device that stands for it.
    ///
    /// # Safety
    /// As for [`CudaDevice::on_stream`].
    unsafe fn on_stream(&self, _: *mut c_void) -> Result<(Device, Arc<dyn Executor>), Error> {
        Err(Error::NotOnGpu { what: "a stream" })
    }
}
