//! What a checked launch refuses.

use crate::DType;

/// Arguments that a kernel's declaration does not allow. Every message names the kernel and the arguments.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The element type differs from the one the kernel was specialised for.
    #[error(
        "kernel `{kernel}`: `{arg}` has dtype {found}, needed {needed}: convert it, or build for {found}"
    )]
    DType {
        /// The kernel.
        kernel: &'static str,
        /// The argument.
        arg: &'static str,
        /// Its element type.
        found: DType,
        /// The one needed.
        needed: DType,
    },
    /// The number of dimensions differs from the declaration's.
    #[error("kernel `{kernel}`: `{arg}` has shape {shape:?}, needed [{dims}]: add or remove dimensions")]
    Rank {
        /// The kernel.
        kernel: &'static str,
        /// The argument.
        arg: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// The dimensions' names.
        dims: String,
    },
    /// The last dimension is not dense.
    #[error(
        "kernel `{kernel}`: `{arg}` has stride {found} on its last dimension, needed 1: make that dimension contiguous"
    )]
    UnitStride {
        /// The kernel.
        kernel: &'static str,
        /// The argument.
        arg: &'static str,
        /// The stride.
        found: usize,
    },
    /// The first element or a row does not start where vector loads need it.
    #[error(
        "kernel `{kernel}`: {what} of `{arg}` is {found} bytes, needed a multiple of {needed}: align it, or copy the tensor"
    )]
    Alignment {
        /// The kernel.
        kernel: &'static str,
        /// The argument.
        arg: &'static str,
        /// `the address` or `a stride`.
        what: &'static str,
        /// The address or stride in bytes.
        found: u64,
        /// The alignment in bytes.
        needed: usize,
    },
    /// Two arguments disagree about a dimension they share.
    #[error(
        "kernel `{kernel}`: `{dim}` is {first} in `{first_arg}` and {second} in `{second_arg}`: they must be equal"
    )]
    Disagree {
        /// The kernel.
        kernel: &'static str,
        /// The dimension.
        dim: &'static str,
        /// Its extent in the first argument.
        first: i64,
        /// The first argument that has it.
        first_arg: &'static str,
        /// Its extent in the second argument.
        second: i64,
        /// The second argument.
        second_arg: &'static str,
    },
    /// A dimension has another extent than the declaration computes for it.
    #[error("kernel `{kernel}`: `{dim}` is {found} in `{arg}`, needed {needed} ({rule}): allocate it so")]
    Derived {
        /// The kernel.
        kernel: &'static str,
        /// The dimension.
        dim: &'static str,
        /// The argument that has it.
        arg: &'static str,
        /// Its extent there.
        found: i64,
        /// What the declaration computes.
        needed: i64,
        /// The declaration's expression.
        rule: &'static str,
    },
    /// An extent the kernel cannot count to, or zero.
    #[error("kernel `{kernel}`: `{dim}` is {found} in `{arg}`, needed 1 to 2147483647")]
    Extent {
        /// The kernel.
        kernel: &'static str,
        /// The dimension.
        dim: &'static str,
        /// The argument.
        arg: &'static str,
        /// The extent.
        found: usize,
    },
    /// A requirement of the declaration does not hold.
    #[error("kernel `{kernel}` needs {condition}, found {values}{advice}")]
    Require {
        /// The kernel.
        kernel: &'static str,
        /// The condition.
        condition: &'static str,
        /// The values in it.
        values: String,
        /// What to do, from the declaration.
        advice: String,
    },
    /// An expression of the declaration that has no value for these arguments.
    #[error(
        "kernel `{kernel}`: `{expression}` divides by zero or overflows 64 bits{values}: pass tensors of other sizes, or \
         change the declaration"
    )]
    Arithmetic {
        /// The kernel.
        kernel: &'static str,
        /// The declaration's expression.
        expression: &'static str,
        /// The values in it, after ` with `; empty without names.
        values: String,
    },
    /// An argument that lives elsewhere than the kernel runs.
    #[error("kernel `{kernel}`: `{arg}` is on {found}, needed on {needed}: call `.to(&device)` first")]
    Place {
        /// The kernel.
        kernel: &'static str,
        /// The argument.
        arg: &'static str,
        /// Where it is.
        found: String,
        /// Where the other arguments are.
        needed: String,
    },
    /// A tensor that is written in the memory of another.
    #[error(
        "kernel `{kernel}`: `{arg}` shares its memory with `{written}`, which is written: copy it first, or write to another tensor"
    )]
    Aliased {
        /// The kernel.
        kernel: &'static str,
        /// The argument, read or written.
        arg: &'static str,
        /// The argument that is written.
        written: &'static str,
    },
    /// A tensor that is written and whose elements are each several of its own.
    #[error(
        "kernel `{kernel}`: `{arg}` is written and repeats its elements {extent} times along `{dim}`, where its stride is 0: copy it first"
    )]
    Repeated {
        /// The kernel.
        kernel: &'static str,
        /// The argument.
        arg: &'static str,
        /// The dimension of stride 0.
        dim: &'static str,
        /// Its extent.
        extent: usize,
    },
    /// A grid larger than CUDA launches.
    #[error(
        "kernel `{kernel}` would need a grid of {grid:?} blocks, the limit is 2147483647 in all and 65535 along all but one side: \
         split the call"
    )]
    Grid {
        /// The kernel.
        kernel: &'static str,
        /// Blocks along x, y, z.
        grid: [i64; 3],
    },
    /// A tensor that the copy engine cannot read as it lies in memory.
    #[error(
        "kernel `{kernel}`: the copy engine cannot read `{arg}`: {reason}; use a schedule of another family, or copy the tensor"
    )]
    TensorMap {
        /// The kernel.
        kernel: &'static str,
        /// The argument.
        arg: &'static str,
        /// What is in the way.
        reason: String,
    },
    /// An argument by a name that the declaration does not have, or without one that it has: arguments that are given
    /// by name alone.
    #[error("kernel `{kernel}`: {found}; {known}")]
    Names {
        /// The kernel.
        kernel: &'static str,
        /// What is wrong with the names.
        found: String,
        /// The names that there are.
        known: String,
    },
    /// Captures of other functions than the kernel was built with.
    #[error(
        "kernel `{kernel}`: the function arguments are of other functions: make them from this kernel's spec"
    )]
    Functions {
        /// The kernel.
        kernel: &'static str,
    },
    /// A candidate of another kernel.
    #[error(
        "the arguments are of kernel `{kernel}`, the candidate is {found}: load the kernel the arguments belong to"
    )]
    Candidate {
        /// The arguments' kernel.
        kernel: &'static str,
        /// What the candidate is of, or lacks.
        found: String,
    },
}

impl BindError {
    /// The error of a requirement that does not hold.
    pub(super) fn unmet(
        kernel: &'static str,
        condition: &'static str,
        values: &[(&str, i64)],
        advice: &str,
    ) -> Self {
        let advice = if advice.is_empty() { String::new() } else { format!(": {advice}") };
        BindError::Require { kernel, condition, values: listed(values), advice }
    }

    /// The error of an expression that has no value.
    pub(super) fn no_value(kernel: &'static str, expression: &'static str, values: &[(&str, i64)]) -> Self {
        let values = if values.is_empty() { String::new() } else { format!(" with {}", listed(values)) };
        BindError::Arithmetic { kernel, expression, values }
    }
}

/// `a = 1, b = 2`
fn listed(values: &[(&str, i64)]) -> String {
    let values: Vec<String> = values.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    values.join(", ")
}
