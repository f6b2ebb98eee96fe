//! A schedule under check on a small case of its own, before it may win.

use super::{BindError, FunctionArgs, Kernel, KernelArgs};
use crate::device::Device;
use crate::{DType, Error, MaskMod, ScoreMod, Tensor};

/// What a check says: that a schedule computes what it should, or what is wrong with it, as a sentence that goes on from its name ("its
/// rows differ from…"). An error says that this schedule failed, but for a panic of a user's function and a call that is to end, which
/// say nothing of any schedule and end the call.
pub type Verdict = Result<Result<(), String>, Error>;

/// A schedule to be checked by the `check.rs` of a kernel's folder.
///
/// `check.rs` has a function `check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict`, with `Args` from `super`. `args` are those of the call
/// that is tuned: they say which optional tensors there are, and what scalars are usual. They are not to be launched with.
#[derive(Debug)]
pub struct Probe<'a> {
    device: Device,
    kernel: &'a Kernel,
    functions: Option<&'a FunctionArgs>,
}

impl<'a> Probe<'a> {
    pub(super) fn new(device: Device, kernel: &'a Kernel, functions: Option<&'a FunctionArgs>) -> Self {
        Probe { device, kernel, functions }
    }

    /// Where the case has to be.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The value of an integer parameter, of `specialize` or `tune`.
    ///
    /// # Errors
    /// [`BindError::Candidate`] where the kernel has none of this name.
    pub fn int(&self, name: &str) -> Result<usize, Error> {
        let candidate = &self.kernel.variant().candidate;
        let value = candidate.constant(name).and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| self.lacks(name))
    }

    /// The element type that a parameter of `specialize` stands for.
    ///
    /// # Errors
    /// As [`int`](Self::int).
    pub fn dtype(&self, name: &str) -> Result<DType, Error> {
        self.kernel.variant().candidate.dtype(name).ok_or_else(|| self.lacks(name))
    }

    fn lacks(&self, name: &str) -> Error {
        let candidate = &self.kernel.variant().candidate;
        let found = format!("`{}` without a value for `{name}`", candidate.spec.kernel());
        BindError::Candidate { kernel: "the one that is checked", found }.into()
    }

    /// The score function of the call, where it has one.
    pub fn score_mod(&self) -> Option<&'a dyn ScoreMod> {
        self.functions?.score_mod()
    }

    /// The mask function of the call, where it has one.
    pub fn mask_mod(&self) -> Option<&'a dyn MaskMod> {
        self.functions?.mask_mod()
    }

    /// A tensor for a result, whose bytes are all set: what is not written does not look right.
    ///
    /// # Errors
    /// As [`Tensor::uninit`].
    pub fn poisoned(&self, dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
        let mut tensor = Tensor::uninit(&self.device, dtype, shape)?;
        tensor.fill_bytes(0xFF)?;
        Ok(tensor)
    }

    /// Launches the schedule with the call's functions.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    ///
    /// # Safety
    /// As for [`Kernel::launch`].
    pub unsafe fn launch<A: KernelArgs>(&self, args: &A) -> Result<(), Error> {
        // SAFETY: the caller's.
        unsafe { self.kernel.launch(args, self.functions) }
    }
}
