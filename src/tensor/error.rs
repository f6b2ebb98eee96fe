//! What can be wrong with a tensor handed to the library.

use crate::DType;

/// A tensor that cannot be used as asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The data does not fill the shape.
    #[error(
        "{found} elements were given for shape {shape:?}, which needs {needed}: pass as many elements as the shape has"
    )]
    Length {
        /// Elements given.
        found: usize,
        /// Elements the shape has.
        needed: usize,
        /// The shape.
        shape: Vec<usize>,
    },
    /// The product of the dimensions does not fit in memory.
    #[error("shape {shape:?} of {dtype} does not fit into memory: use a smaller shape")]
    TooLarge {
        /// The shape.
        shape: Vec<usize>,
        /// Its element type.
        dtype: DType,
    },
    /// The element type is not the one asked for.
    #[error("{what} has dtype {found}, needed {needed}: convert it first")]
    DType {
        /// Which tensor.
        what: String,
        /// Its element type.
        found: DType,
        /// What was needed.
        needed: String,
    },
    /// Another shape than the one asked for.
    #[error("{what} has shape {found:?}, needed {needed:?}: make it of that shape")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape needed.
        needed: Vec<usize>,
    },
    /// The number of dimensions is wrong.
    #[error("{what} has {found} dimensions (shape {shape:?}), needed {needed}: {layout}")]
    Rank {
        /// Which tensor.
        what: String,
        /// Its rank.
        found: usize,
        /// The rank needed.
        needed: usize,
        /// Its shape.
        shape: Vec<usize>,
        /// What the dimensions mean.
        layout: String,
    },
    /// Strides of another length than the shape, or that leave the storage.
    #[error("strides {strides:?} do not fit shape {shape:?} over {elements} elements: {why}")]
    Strides {
        /// The strides, in elements.
        strides: Vec<usize>,
        /// The shape.
        shape: Vec<usize>,
        /// Elements in the storage.
        elements: usize,
        /// What does not fit.
        why: &'static str,
    },
    /// Two tensors that disagree in a dimension they share.
    #[error("{dimension} is {sizes:?} in {first} and {second}: pass tensors that agree")]
    Dimension {
        /// The dimension.
        dimension: &'static str,
        /// Its size in either tensor.
        sizes: (usize, usize),
        /// One tensor.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// Query heads that cannot be shared out evenly over the key heads.
    #[error("{}", head_groups(*heads, *kv_heads))]
    HeadGroups {
        /// Query heads.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
    },
    /// An order of dimensions that is none.
    #[error(
        "{order:?} is no order of {rank} dimensions: name each of 0 to {rank} (without {rank} itself) once"
    )]
    Order {
        /// The order given.
        order: Vec<usize>,
        /// The tensor's rank.
        rank: usize,
    },
    /// Storage that another tensor sees too.
    #[error("the storage is shared with another tensor: drop that one, or make a tensor of its own")]
    Shared,
    /// The tensor lives on another device than the operation runs on.
    #[error("{what} is on {found}, needed on {needed}: call `.to(&device)` first")]
    Place {
        /// Which tensor.
        what: String,
        /// Where it is.
        found: String,
        /// Where it should be.
        needed: String,
    },
}

fn head_groups(heads: usize, kv_heads: usize) -> String {
    match kv_heads {
        0 => format!(
            "q has {heads} heads and k has none, so that they have nothing to attend to: give k and v as many heads as q, or a \
             number that divides {heads}"
        ),
        _ => format!(
            "q has {heads} heads and k has {kv_heads}, needed a multiple of {kv_heads} in q: repeat or drop heads"
        ),
    }
}
