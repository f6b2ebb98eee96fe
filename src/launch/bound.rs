//! What bindings are made of: dimensions as declared, and what the checks hand over to a launch.

use super::BoxedTensor;
use smallvec::SmallVec;

/// A dimension as a tensor argument declares it.
#[derive(Debug, Clone, Copy)]
pub struct Dim {
    name: &'static str,
    broadcast: bool,
}

impl Dim {
    /// `name`: the extent is the dimension's.
    pub const fn exact(name: &'static str) -> Self {
        Dim { name, broadcast: false }
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Whether an extent of 1 is repeated.
    pub(crate) const fn is_broadcast(&self) -> bool {
        self.broadcast
    }

    /// `name | 1`: an extent of 1 is repeated.
    pub const fn broadcast(name: &'static str) -> Self {
        Dim { name, broadcast: true }
    }
}

/// A tensor argument as `Params` holds it: an address and `S` strides in elements.
#[derive(Debug, Clone, Copy)]
pub struct BoundTensor<const S: usize> {
    /// The device address; 0 when the argument is absent.
    pub pointer: u64,
    /// Strides of all dimensions but the last; 0 where an extent of 1 is repeated.
    pub strides: [i64; S],
}

/// Arguments that passed the checks.
#[derive(Debug, Clone)]
pub struct Bound<P> {
    /// What the kernel takes by value.
    pub params: P,
    /// Tensors that the copy engine reads, in the order of the kernel's `TensorMaps`.
    pub tensor_maps: SmallVec<[BoxedTensor; 4]>,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// There are more blocks along y or z than CUDA launches: the launch is that of
    /// [`Variant::folded`](crate::codegen::Variant::folded), with a grid of `[y · z, x, 1]`.
    pub folded: bool,
    /// The grid counts tiles of work, which as many blocks as run at once take in turn.
    pub persistent: bool,
    /// The blocks take them from a counter, which the kernel wants as its last parameter.
    pub queue: bool,
    /// The first tensor argument and the number of the GPU that all of them are on; absent without tensors.
    pub on: Option<(&'static str, usize)>,
}

/// CUDA's limit on the blocks of a grid along y, and along z.
const MOST_ALONG_Y_AND_Z: i64 = 65_535;

/// The blocks that a launch starts for a grid of the declaration's.
pub(super) struct Blocks {
    pub(super) grid: [u32; 3],
    /// See [`Bound::folded`].
    pub(super) folded: bool,
}

impl Blocks {
    /// `None` when the grid is over CUDA's limits, also with y and z folded into x.
    pub(super) fn of([x, y, z]: [i64; 3], persistent: bool) -> Option<Self> {
        let most = i64::from(i32::MAX);
        let product = |a: i64, b: i64| a.checked_mul(b).unwrap_or(i64::MAX);
        let folded = !persistent && (y > MOST_ALONG_Y_AND_Z || z > MOST_ALONG_Y_AND_Z);
        let grid = if folded { [product(y, z), x, 1] } else { [x, y, z] };
        let fits = match persistent {
            // Tiles are counted in 32 bits. A block's next tile is that of its own number plus the grid's: that must fit too.
            true => product(product(x, y), z) <= most - MOST_ALONG_Y_AND_Z,
            false => grid[1] <= MOST_ALONG_Y_AND_Z && grid[2] <= MOST_ALONG_Y_AND_Z,
        };
        let in_words = grid.map(u32::try_from);
        match (in_words, fits && grid.iter().all(|side| *side <= most)) {
            ([Ok(x), Ok(y), Ok(z)], true) => Some(Blocks { grid: [x, y, z], folded }),
            _ => None,
        }
    }
}
