//! What can be wrong with a token grid.

/// A token grid that cannot be made, or tensors that are not of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GridError {
    /// A side of the grid or of the tile is 0.
    #[error("the {what} is {}×{}×{} (t, h, w), needed at least 1 along each: pass the sizes of the latent video in patches", sizes[0], sizes[1], sizes[2])]
    Zero {
        /// `grid` or `tile`.
        what: &'static str,
        /// Its sides: t, h, w.
        sizes: [usize; 3],
    },
    /// A tile that is not one key block.
    #[error(
        "a tile of {}×{}×{} (t, h, w) holds {tokens} tokens, needed {block}, the keys of a sparse block: choose sides whose product is {block}",
        tile[0], tile[1], tile[2]
    )]
    Tile {
        /// Its sides: t, h, w.
        tile: [usize; 3],
        /// Their product, or the largest number there is.
        tokens: usize,
        /// Keys in a sparse block.
        block: usize,
    },
    /// More tokens than a kernel can count.
    #[error("{found} tokens, needed at most {limit}: positions are 32-bit integers")]
    TooLong {
        /// Tokens of the grid and around it, or the largest number there is.
        found: usize,
        /// The most there can be.
        limit: usize,
    },
    /// More tokens than there is memory for.
    #[error("the order of {tokens} tokens does not fit into memory: use a smaller grid")]
    TooLarge {
        /// Tokens of the grid and around it.
        tokens: usize,
    },
    /// A tensor of another length.
    #[error(
        "the tensor has {found} tokens, needed {needed}: {expected}; its shape is {shape:?}, and tokens are the dimension before the last"
    )]
    Length {
        /// Tokens of the tensor.
        found: usize,
        /// Tokens of the grid and around it.
        needed: usize,
        /// How that number comes about.
        expected: String,
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// A place for the result that is not like the input.
    #[error(
        "the result has the shape {needed:?} of {dtype}, the tensor to write it to is {found:?} of {found_dtype}: pass one of the same shape and dtype"
    )]
    Output {
        /// The input's shape.
        needed: Vec<usize>,
        /// Its element type.
        dtype: crate::DType,
        /// The shape of the place.
        found: Vec<usize>,
        /// Its element type.
        found_dtype: crate::DType,
    },
}
