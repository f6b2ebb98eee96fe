//! Head dimensions the kernels take.

use crate::kernels::specs::{backward_q, forward};
use std::fmt;

/// A head dimension: a multiple of 8 up to [`HeadDim::MAX`]. Those between the widths of tiles run in the next larger one,
/// padded inside the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeadDim(usize);

/// A head dimension no kernel takes, or not the one built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadDimError {
    /// Not a multiple of 8 between 8 and [`HeadDim::MAX`].
    #[error(
        "head dimension {found}, needed a multiple of 8 from 8 to {}: pad q, k and v with zeros to the next multiple",
        HeadDim::MAX
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

    /// The largest: the widest tile of the forward.
    pub const MAX: usize = {
        let (mut widest, mut at) = (0, 0);
        while at < forward::SPECS.len() {
            let width = forward::SPECS[at].d as usize;
            widest = if width > widest { width } else { widest };
            at += 1;
        }
        widest
    };

    /// Any supported dimension.
    ///
    /// # Errors
    /// [`HeadDimError::Unsupported`] unless it is a multiple of 8 from 8 to [`MAX`](Self::MAX).
    pub fn new(dim: usize) -> Result<Self, HeadDimError> {
        if dim == 0 || dim > Self::MAX || !dim.is_multiple_of(8) {
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
        self.smallest_of(forward::SPECS.iter().map(|spec| [spec.d, spec.d_v]), values)
    }

    /// The tiles that the kernels of their gradients run in, of which there are fewer.
    pub fn backward_tiles(self, values: HeadDim) -> [usize; 2] {
        self.smallest_of(backward_q::SPECS.iter().map(|spec| [spec.d, spec.d_v]), values)
    }

    /// The tiles with the fewest columns that hold both.
    fn smallest_of(self, tiles: impl Iterator<Item = [i64; 2]>, values: HeadDim) -> [usize; 2] {
        let tiles = tiles.map(|widths| widths.map(|width| width as usize));
        let hold_both = tiles.filter(|[d, d_v]| *d >= self.0 && *d_v >= values.0);
        hold_both.min_by_key(|widths| widths.iter().sum::<usize>()).unwrap_or([Self::MAX; 2])
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
    use crate::kernels::specs::{pool, rank};

    #[test]
    fn a_dimension_runs_in_the_smallest_tile_that_holds_it() {
        for (dim, tile) in [(8, 64), (64, 64), (96, 96), (128, 128), (192, 192), (256, 256)] {
            let dim = HeadDim::new(dim).unwrap();
            assert_eq!((dim.tile(), dim.tiles(dim)), (tile, [tile; 2]), "{dim}");
            let backward = if tile == 192 { 256 } else { tile };
            assert_eq!(dim.backward_tiles(dim), [backward; 2], "{dim}");
        }
        for (dims, tiles, backward) in [
            ([192, 128], [192, 128], [256, 128]),
            ([64, 128], [128; 2], [128; 2]),
            ([128, 64], [128; 2], [128; 2]),
            ([64, 192], [192; 2], [256; 2]),
            ([256, 128], [256; 2], [256, 128]),
        ] {
            let [dim, values] = dims.map(|dim| HeadDim::new(dim).unwrap());
            assert_eq!((dim.tiles(values), dim.backward_tiles(values)), (tiles, backward), "{dims:?}");
        }
        for dim in [0, 4, 100, 257, 264, usize::MAX] {
            assert_eq!(HeadDim::new(dim), Err(HeadDimError::Unsupported { found: dim }));
        }
    }

    /// The widths that stand in the declarations, of every pair of dimensions, and with one tile for means and scores.
    #[test]
    fn no_smaller_tile_would_do() {
        let all = || (8..=HeadDim::MAX).step_by(8).map(|dim| HeadDim::new(dim).unwrap());
        let forward: Vec<[i64; 2]> = forward::SPECS.iter().map(|spec| [spec.d, spec.d_v]).collect();
        let backward: Vec<[i64; 2]> = backward_q::SPECS.iter().map(|spec| [spec.d, spec.d_v]).collect();
        for (dim, values) in all().flat_map(|dim| all().map(move |values| (dim, values))) {
            for (found, known) in [(dim.tiles(values), &forward), (dim.backward_tiles(values), &backward)] {
                assert!(known.contains(&found.map(|width| width as i64)), "{dim} and {values}: {found:?}");
                assert!(found[0] >= dim.get() && found[1] >= values.get(), "{dim} and {values}: {found:?}");
                let smaller =
                    known.iter().map(|widths| widths.map(|width| width as usize)).find(|[d, d_v]| {
                        *d >= dim.get() && *d_v >= values.get() && d + d_v < found[0] + found[1]
                    });
                assert_eq!(smaller, None, "{dim} and {values}: {found:?}");
            }
            for kernel in [
                pool::SPECS.iter().map(|spec| spec.d).collect::<Vec<_>>(),
                rank::SPECS.iter().map(|spec| spec.d).collect(),
            ] {
                assert!(kernel.contains(&(dim.tile() as i64)), "{dim}");
            }
        }
    }
}
