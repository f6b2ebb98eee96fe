//! Kernels on a GPU: chosen, rendered, compiled, loaded, and launched with checked arguments.
//!
//! The bindings of a kernel, which the [generator](crate::codegen::emit) makes, give a `SOURCE` and an `Args` struct; a [`Tuned`] kernel
//! runs the schedule that is fastest here. [`load`] makes [`Kernel`]s of specs without timing any, and [`Kernel::launch`] runs one. Here
//! a shipped kernel stands in for one of your own:
//!
//! ```no_run
//! use tilewright::{DType, Device, Tensor, kernels::score, launch};
//! let device = Device::cuda(0)?;
//! let means = |blocks| Tensor::zeros(DType::F32, &[1, 12, blocks, 128])?.to(&device);
//! let (q_mean, k_mean) = (&means(8)?, &means(16)?);
//! let logits = &mut Tensor::uninit(&device, DType::F32, &[1, 12, 8, 16])?;
//! let kernel = launch::Tuned::new(device.as_cuda().unwrap(), &launch::Request::new(&score::SOURCE))?;
//! // SAFETY: `score` takes any scale and any means, and asks for nothing that the checks do not see.
//! unsafe { kernel.launch(&score::Args { q_mean, k_mean, logits, scale: 0.09 }, None)? };
//! # Ok::<(), tilewright::Error>(())
//! ```

mod bind;
mod bound;
mod boxed;
mod choose;
mod compare;
mod declared;
mod dynamic;
mod error;
mod functions;
mod kernel;
mod lazy;
mod library;
mod probe;
mod results;
mod slices;
mod store;
mod trial;
mod tuned;

pub use crate::codegen::dsl::{Access, Tolerance};
#[doc(hidden)]
pub use crate::device::BoxedTensor;
/// What bindings are made of: public for the generated code alone.
#[doc(hidden)]
pub use bind::Binder;
#[doc(hidden)]
pub use bound::{Bound, BoundTensor, Dim};
/// The sizes of a launch as records know them; public for the tests alone.
#[doc(hidden)]
pub use declared::bucket;
pub use declared::{TensorArg, TensorDecl};
/// Kernels whose declarations are read at run time; public for the command and the tests alone.
#[doc(hidden)]
pub use dynamic::{DynamicArgs, DynamicKernel, DynamicTensor};
pub use error::BindError;
pub use functions::{Function, FunctionArgs};
pub use kernel::Kernel;
pub(crate) use lazy::Lazy;
pub use library::{Request, load};
pub use probe::{Probe, Verdict};
pub use tuned::{Choice, Tuned};

use crate::codegen::Candidate;

/// The arguments of a kernel; generated from its declaration.
///
/// # Safety
/// [`bind`](Self::bind) returns what the kernel `KERNEL` of `DECLARATION` expects: addresses of tensors that the arguments borrow, with
/// extents and strides that stay inside them, and those that it writes overlap no other. `Params` has no padding and the layout of the kernel's own struct.
/// [`tensors`](Self::tensors) says of nothing that it is written but of what the arguments borrow to write: the tuner writes it too.
pub unsafe trait KernelArgs {
    /// The kernel's name.
    const KERNEL: &'static str;
    /// The hash of its declaration ([`KernelSpec::declaration`](crate::codegen::KernelSpec::declaration)): another crate's kernel of
    /// the same name has another one.
    const DECLARATION: &'static str;
    /// What it takes by value.
    type Params: Copy;

    /// Checks every argument against the declaration and the candidate's specialisation.
    ///
    /// # Errors
    /// [`BindError`] names the argument, what was found and what was needed.
    fn bind(&self, candidate: &Candidate) -> Result<Bound<Self::Params>, BindError>;

    /// The tensors given, in the declaration's order: what the tuner poisons, puts back and compares.
    fn tensors(&self) -> Vec<TensorArg<'_>> {
        Vec::new()
    }

    /// Checks a schedule on a small case of its own: the `check` of the folder's `check.rs`, where there is one.
    ///
    /// # Errors
    /// See [`Verdict`].
    fn check(&self, _probe: &Probe<'_>) -> Verdict {
        Ok(Ok(()))
    }
}
