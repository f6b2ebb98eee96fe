//! The one error type of the public API.

use crate::mask::MaskError;
use crate::select::SelectError;
use crate::tensor::TensorError;

/// Anything that can go wrong in a call. The message says what was found, what was needed and what to do.
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
