//! The one error type of the public API.

mod kind;

pub use kind::ErrorKind;

use crate::cache::CacheError;
use crate::codegen::lower::CaptureError;
use crate::compile::CompileError;
use crate::device::DeviceError;
use crate::dynamic::FunctionError;
use crate::grid::GridError;
use crate::head_dim::HeadDimError;
use crate::launch::BindError;
use crate::mask::MaskError;
use crate::select::SelectError;
use crate::tail::TailError;
use crate::tensor::TensorError;
use crate::toolchain::ToolchainError;
use crate::tune::{Call, PolicyError};

/// Anything that can go wrong in a call. The message says what was found, what was needed and what to do; its
/// [`kind`](Self::kind) is for programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor that cannot be used as asked.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A selection rule out of its range.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// A block mask that cannot be made or used as asked.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// A token grid that cannot be made, or a tensor that is not of it.
    #[error(transparent)]
    Grid(#[from] GridError),
    /// A head dimension no kernel takes, or not the one built for.
    #[error(transparent)]
    HeadDim(#[from] HeadDimError),
    /// Arguments that a kernel's declaration does not allow.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A declaration, a template or a spec that the generator refuses.
    #[error(transparent)]
    Codegen(#[from] crate::codegen::Error),
    /// NVRTC is missing or cannot be used.
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    /// NVRTC refused a source.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A GPU that cannot be used, or that failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A kernel cache that cannot be used: a cubin is code, and another user could have put it there.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// `TILEWRIGHT_POLICY` names no policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Nothing is tuned or compiled in production, and the cache does not hold what the call needs.
    #[error(
        "kernel `{kernel}` is not in the cache for {device} ({what}), and the policy is cache-only: make the same call once under \
         another policy, or import a bundle that holds it"
    )]
    CacheOnly {
        /// The kernel.
        kernel: String,
        /// The GPU.
        device: String,
        /// The record or the cubin that is missing.
        what: String,
        /// The attention's call; none for a kernel that is no attention's.
        call: Option<Box<Call>>,
    },
    /// No candidate passed the checks of the tuner.
    #[error("kernel `{kernel}` cannot be tuned on {device}: {reason}")]
    Tune {
        /// The kernel.
        kernel: String,
        /// The GPU.
        device: String,
        /// What became of the candidates.
        reason: String,
    },
    /// Captures that do not match a device function's parameters.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The text or the captures of a device function made at run time.
    #[error(transparent)]
    DynamicFunction(#[from] FunctionError),
    /// Every schedule of a kernel spills registers.
    #[error(
        "kernel `{kernel}`: every schedule spills registers on {arch}: make its device functions smaller"
    )]
    Spills {
        /// The kernel.
        kernel: String,
        /// The architecture.
        arch: String,
    },
    /// A tail that cannot be used as asked.
    #[error(transparent)]
    Tail(#[from] TailError),
    /// A factor of the scores that is no number.
    #[error("the scale is {found}, needed a finite number; without one it is 1 / sqrt(head_dim)")]
    Scale {
        /// The scale.
        found: f32,
    },
    /// Memory that a call would read and write at once, or write twice.
    #[error(
        "`{what}` shares its memory with `{with}`, which the call writes: copy it first, or write to another tensor"
    )]
    Aliased {
        /// The argument.
        what: &'static str,
        /// The argument that is written.
        with: &'static str,
    },
    /// Scratch that another call works in.
    #[error(
        "a call of another thread is at work in this scratch: give each thread its own, or call when the other has returned"
    )]
    ScratchInUse,
    /// Rows that would be read and written at once.
    #[error("the tensor and its result share their memory, but rows change places: write to another tensor")]
    SharedRows,
    /// Something only a GPU has.
    #[error("{what} was given, but the attention runs on the CPU: build it for `Device::cuda(n)`")]
    NotOnGpu {
        /// What was given.
        what: &'static str,
    },
    /// A selection for an attention without one, or the other way round.
    #[error("only one of the two attentions selects blocks: build the other with `Attention::builder`")]
    Selects,
    /// Memory of the caller's that is too small to work in.
    #[error(
        "the scratch memory has {found} bytes, and the call needs more: make a contiguous buffer of `plan.scratch_bytes(step)`"
    )]
    Scratch {
        /// Its size in bytes.
        found: usize,
    },
    /// An output with gaps between its elements.
    #[error(
        "`{what}` has strides {strides:?} over shape {shape:?}, needed a tensor without gaps: make a contiguous one and permute it"
    )]
    Gaps {
        /// Which output.
        what: &'static str,
        /// Its strides, in elements.
        strides: Vec<usize>,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Lists of full blocks without a mask function, or a mask function without such lists.
    #[error(
        "{found}: make the lists of this attention's kind (`full_kv` and `full_q` where there is a mask function)"
    )]
    Lists {
        /// What does not fit.
        found: &'static str,
    },
    /// A workspace of another attention.
    #[error(
        "the workspace belongs to another attention: make one with `plan.workspace()` of a plan of this attention"
    )]
    ForeignWorkspace,
    /// Tensors of other shapes than a plan is for.
    #[error(
        "the plan is for {expected}; the call has {found}: make one with `attention.plan(Shapes::of(&q, &k)?)`"
    )]
    Plan {
        /// The shapes of the call.
        found: String,
        /// The plan's shapes.
        expected: String,
    },
    /// A workspace of a plan for other shapes.
    #[error(
        "the workspace was made for {expected}; the plan is for {found}: make one with its `plan.workspace()`"
    )]
    Workspace {
        /// The plan's shapes.
        found: String,
        /// The workspace's shapes.
        expected: String,
    },
    /// A device function whose text is outside the supported subset of Rust.
    #[error("device function `{name}` cannot run on a GPU: {message}")]
    Function {
        /// The function.
        name: String,
        /// What is not supported.
        message: String,
    },
    /// An [`Interrupt`](crate::Interrupt) was set.
    #[error("the call was interrupted before it was done: call again")]
    Interrupted,
    /// A user's score or mask function panicked on the CPU (an index out of range, a division by zero, an overflow).
    #[error(
        "device function `{name}` panicked: {message}; the GPU would read 0 or wrap instead: guard the expression"
    )]
    DeviceFunction {
        /// The function.
        name: String,
        /// The panic's message.
        message: String,
    },
}
