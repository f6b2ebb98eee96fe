//! Head dimensions the kernels take.

use std::fmt;

/// A head dimension: a multiple of 8 up to 256. Those between 64, 96, 128, 192 and 256 run in the next larger tile, padded
/// inside the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeadDim(usize);

/// A head dimension no kernel takes, or not the one built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadDimError {
    /// Not a multiple of 8 between 8 and 256.
    #[error(
        "head dimension {found}, needed a multiple of 8 from 8 to 256: pad q, k and v with zeros to the next multiple"
    )]
    Unsupported {
        /// The dimension.
        found: usize,
    },
    /// q and k have another one than the attention.
    #[error(
        "the tensors have head dimension {found}, this attention was built for {needed}: build one for {found}"
    )]
    Differs {
        /// The tensors'.
        found: usize,
        /// The attention's.
        needed: usize,
    },
    /// v has another one than the attention's values.
    #[error(
        "v has head dimension {found}, this attention was built for values of {needed}: build one with `.value_dim()` of {found}"
    )]
    ValuesDiffer {
        /// v's.
        found: usize,
        /// The attention's.
        needed: usize,
    },
}

impl HeadDim {
    /// 64: CogVideoX.
    pub const D64: HeadDim = HeadDim(64);
    /// 96.
    pub const D96: HeadDim = HeadDim(96);
    /// 128: Wan, HunyuanVideo.
    pub const D128: HeadDim = HeadDim(128);
    /// 192: the queries and keys of multi-head latent attention.
    pub const D192: HeadDim = HeadDim(192);
    /// 256.
    pub const D256: HeadDim = HeadDim(256);

    /// Widths of the forward's tiles, of queries and keys and of values, the cheapest first. The mask's are the first of each.
    const TILES: [[usize; 2]; 6] = [[64; 2], [96; 2], [128; 2], [192, 128], [192; 2], [256; 2]];
    /// Those of the backward.
    const BACKWARD_TILES: [[usize; 2]; 5] = [[64; 2], [96; 2], [128; 2], [256, 128], [256; 2]];

    /// Any supported dimension.
    ///
    /// # Errors
    /// [`HeadDimError::Unsupported`] unless it is a multiple of 8 from 8 to 256.
    pub fn new(dim: usize) -> Result<Self, HeadDimError> {
        if dim == 0 || dim > 256 || !dim.is_multiple_of(8) {
            return Err(HeadDimError::Unsupported { found: dim });
        }
        Ok(HeadDim(dim))
    }

    /// The dimension.
    pub const fn get(self) -> usize {
        self.0
    }

    /// The tile it runs in: the smallest that holds it.
    pub fn tile(self) -> usize {
        self.tiles(self)[0]
    }

    /// The tiles that queries and keys of this dimension and values of another run in.
    pub fn tiles(self, values: HeadDim) -> [usize; 2] {
        self.smallest_of(&Self::TILES, values)
    }

    /// The tiles that the kernels of their gradients run in: there is none of 192.
    pub fn backward_tiles(self, values: HeadDim) -> [usize; 2] {
        self.smallest_of(&Self::BACKWARD_TILES, values)
    }

    /// The smallest of the tiles that hold both.
    fn smallest_of(self, tiles: &[[usize; 2]], values: HeadDim) -> [usize; 2] {
        let holds = |tiles: &[usize; 2]| tiles[0] >= self.0 && tiles[1] >= values.0;
        tiles.iter().copied().find(holds).unwrap_or([256; 2])
    }

    /// The usual factor of the scores, `1 / sqrt(d)`.
    pub fn default_scale(self) -> f32 {
        1.0 / (self.0 as f32).sqrt()
    }
}

impl fmt::Display for HeadDim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_hold_their_dimensions() {
        for (dim, tile) in [
            (8, 64),
            (64, 64),
            (72, 96),
            (80, 96),
            (104, 128),
            (128, 128),
            (136, 192),
            (192, 192),
            (200, 256),
            (256, 256),
        ] {
            let dim = HeadDim::new(dim).unwrap();
            assert_eq!((dim.tile(), dim.tiles(dim)), (tile, [tile; 2]), "{dim}");
            let backward = if tile == 192 { 256 } else { tile };
            assert_eq!(dim.backward_tiles(dim), [backward; 2], "{dim}");
        }
        for (dims, tiles, backward) in [
            ([192, 128], [192, 128], [256, 128]),
            ([160, 8], [192, 128], [256, 128]),
            ([192, 136], [192; 2], [256; 2]),
            ([200, 128], [256; 2], [256, 128]),
            ([64, 128], [128; 2], [128; 2]),
            ([128, 64], [128; 2], [128; 2]),
            ([64, 192], [192; 2], [256; 2]),
        ] {
            let [dim, values] = dims.map(|dim| HeadDim::new(dim).unwrap());
            assert_eq!((dim.tiles(values), dim.backward_tiles(values)), (tiles, backward), "{dims:?}");
        }
        for dim in [0, 4, 100, 257, 264, usize::MAX] {
            assert_eq!(HeadDim::new(dim), Err(HeadDimError::Unsupported { found: dim }));
        }
    }
}
