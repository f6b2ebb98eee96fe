//! Token grids: the tokens of a video regrouped so that a sparse block is a compact piece of it.
//!
//! In raster order, 64 consecutive tokens are a line of one frame; regrouped, they are a cube of 4×4×4. Local heads then
//! find what they look at in fewer blocks: `docs/token-order.md` has the figures. Regroup once at the model's entry, the
//! tables of the rotary embedding as well, and put the tokens back at its exit: attention does not depend on the order of
//! its tokens, so nothing between changes.
//!
//! ```
//! use tilewright::{DType, Tensor, TokenGrid};
//! let grid = TokenGrid::new([21, 30, 52])?; // Wan 2.1 at 480p: frames, rows and columns of tokens
//! let hidden = Tensor::zeros(DType::Bf16, &[1, grid.len(), 64])?;
//! let regrouped = grid.regroup(&hidden)?;
//! // … the blocks of the transformer …
//! let out = grid.restore(&regrouped)?;
//! assert_eq!(out.shape(), hidden.shape());
//! # Ok::<(), tilewright::Error>(())
//! ```

mod apply;
mod error;
mod gpu;
mod order;

pub use error::GridError;

use crate::device::CudaDevice;
use crate::mask::MOST_POSITIONS;
use crate::{BlockSize, Error, room};
use gpu::OnGpu;
use std::fmt;
use std::sync::{Arc, Mutex};

/// The tokens of a video of t × h × w, in another order: positions, their inverse, and the means to move tensors.
///
/// Tokens are numbered in raster order, w fastest, with those before the grid first: token = before + (t · H + h) · W + w.
/// Positions number the same tokens in the new order. Tokens before and after the grid (a text, say) keep their places.
///
/// # The order
///
/// Runs of tokens as long as a block are tiles, and two consecutive runs are neighbours, along t where there is one: the 128
/// queries of a block are two cubes. Nothing is padded: the order is a permutation whatever the sizes. Where
/// the grid is no multiple of the tile, columns of about a tile's cross-section are swept along t, turning at each end, so
/// that runs stay compact though they are not all cubes. The first run begins at a multiple of the larger of the two block
/// sizes; what lies between the tokens before the grid and that position is filled from the far end of the sweep.
///
/// Cloning is cheap.
#[derive(Clone)]
pub struct TokenGrid {
    shape: Arc<Shape>,
    /// What has been put on GPUs so far.
    gpus: Arc<Mutex<OnGpu>>,
    /// Whose stream is used; the tensor's own where absent.
    stream: Option<CudaDevice>,
}

struct Shape {
    grid: [usize; 3],
    tile: [usize; 3],
    before: usize,
    after: usize,
    blocks: BlockSize,
    order: Vec<i32>,
    inverse: Vec<i32>,
}

/// Describes a token grid; [`build`](Self::build) makes it.
#[derive(Debug, Clone)]
#[must_use = "call `.build()`"]
pub struct TokenGridBuilder {
    grid: [usize; 3],
    tile: Option<[usize; 3]>,
    before: usize,
    after: usize,
    blocks: BlockSize,
}

impl TokenGrid {
    /// A grid of t × h × w tokens and nothing else, in tiles of 4×4×4.
    ///
    /// # Errors
    /// [`GridError::Zero`] for an empty grid, [`GridError::TooLong`] for more tokens than 32-bit positions count.
    pub fn new(grid: [usize; 3]) -> Result<Self, Error> {
        Self::builder(grid).build()
    }

    /// Starts describing a grid of t × h × w tokens.
    pub fn builder(grid: [usize; 3]) -> TokenGridBuilder {
        TokenGridBuilder { grid, tile: None, before: 0, after: 0, blocks: BlockSize::default() }
    }

    /// The grid: t, h, w.
    pub fn grid(&self) -> [usize; 3] {
        self.shape.grid
    }

    /// The tile: t, h, w.
    pub fn tile(&self) -> [usize; 3] {
        self.shape.tile
    }

    /// The sparse block the order is made for.
    pub fn blocks(&self) -> BlockSize {
        self.shape.blocks
    }

    /// How many tokens come before the grid.
    pub fn before(&self) -> usize {
        self.shape.before
    }

    /// How many come after it.
    pub fn after(&self) -> usize {
        self.shape.after
    }

    /// The same order of the grid's tokens alone, for tensors without those before and after: CogVideoX's rotary tables, say.
    /// Tokens and positions count from the grid's first.
    pub fn video_only(&self) -> TokenGrid {
        let Shape { grid, tile, before, blocks, ref order, .. } = *self.shape;
        let cells = order[before..].iter().take(grid.iter().product()).map(|&token| token - before as i32);
        let shape = Shape { grid, tile, before: 0, after: 0, blocks, order: Vec::new(), inverse: Vec::new() };
        TokenGrid { stream: self.stream.clone(), ..shape.with(cells) }
    }

    /// All tokens, those before and after the grid included.
    #[expect(clippy::len_without_is_empty, reason = "a grid is never empty")]
    pub fn len(&self) -> usize {
        self.shape.order.len()
    }

    /// The token at each position: position → raster number.
    pub fn order(&self) -> &[i32] {
        &self.shape.order
    }

    /// The position of each token: raster number → position.
    pub fn inverse(&self) -> &[i32] {
        &self.shape.inverse
    }

    /// The key block a token (by its raster number) lies in; none for a number that is no token.
    pub fn block_of(&self, token: usize) -> Option<usize> {
        self.shape.inverse.get(token).map(|&position| position as usize / self.shape.blocks.kv())
    }
}

impl TokenGridBuilder {
    /// The tile: t, h, w. Its product is the number of keys in a sparse block; 4×4×4, or 8×4×4 for blocks of 128 keys, when
    /// not given. 1×8×8 suits single images.
    pub fn tile(mut self, tile: [usize; 3]) -> Self {
        self.tile = Some(tile);
        self
    }

    /// The attention's sparse block; 128 queries by 64 keys when not given.
    pub fn blocks(mut self, blocks: BlockSize) -> Self {
        self.blocks = blocks;
        self
    }

    /// How many tokens come before the grid, such as CogVideoX's text: they keep their places. 0 when not given.
    pub fn before(mut self, tokens: usize) -> Self {
        self.before = tokens;
        self
    }

    /// How many tokens come after the grid, such as HunyuanVideo's text: they keep their places. 0 when not given.
    pub fn after(mut self, tokens: usize) -> Self {
        self.after = tokens;
        self
    }

    /// Finds the order.
    ///
    /// # Errors
    /// [`GridError::Zero`] for an empty grid or tile, [`GridError::Tile`] for a tile that is not a block's keys,
    /// [`GridError::TooLong`] for more tokens than 32-bit positions count, [`GridError::TooLarge`] for more than memory holds.
    pub fn build(self) -> Result<TokenGrid, Error> {
        let TokenGridBuilder { grid, tile, before, after, blocks } = self;
        let tile = tile.unwrap_or([blocks.kv() / 16, 4, 4]);
        for (what, sizes) in [("grid", grid), ("tile", tile)] {
            if sizes.contains(&0) {
                return Err(GridError::Zero { what, sizes }.into());
            }
        }
        // Saturating: what does not fit is too much either way.
        let product = |sizes: [usize; 3]| sizes.into_iter().fold(1, usize::saturating_mul);
        if product(tile) != blocks.kv() {
            return Err(GridError::Tile { tile, tokens: product(tile), block: blocks.kv() }.into());
        }
        let found = product(grid).saturating_add(before).saturating_add(after);
        if found > MOST_POSITIONS {
            return Err(GridError::TooLong { found, limit: MOST_POSITIONS }.into());
        }
        // The order twice and its inverse; and what the cuts along h and w take.
        let cuts = (grid[1] + grid[2]).checked_mul(32);
        let bytes = found.checked_mul(12).zip(cuts).and_then(|(order, cuts)| order.checked_add(cuts));
        if !room::has(bytes) {
            return Err(GridError::TooLarge { tokens: found }.into());
        }
        let mut cells = order::cells(grid, tile);
        // Blocks count from the first token: the sweep must begin where one does.
        let unit = blocks.q().max(blocks.kv());
        let fill = (before.next_multiple_of(unit) - before).min(cells.len());
        cells.rotate_right(fill);

        Ok(Shape { grid, tile, before, after, blocks, order: Vec::new(), inverse: Vec::new() }.with(cells))
    }
}

impl Shape {
    /// The grid whose cells come in this order.
    fn with(mut self, cells: impl IntoIterator<Item = i32>) -> TokenGrid {
        let (before, after) = (self.before as i32, self.after as i32);
        self.order.extend(0..before);
        self.order.extend(cells.into_iter().map(|cell| before + cell));
        let first_after = self.order.len() as i32;
        self.order.extend(first_after..first_after + after);
        self.inverse = vec![0; self.order.len()];
        for (position, &token) in self.order.iter().enumerate() {
            self.inverse[token as usize] = position as i32;
        }
        TokenGrid { shape: Arc::new(self), gpus: Arc::default(), stream: None }
    }
}

impl fmt::Debug for TokenGrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { grid, tile, before, after, blocks, .. } = &*self.shape;
        f.debug_struct("TokenGrid")
            .field("grid", grid)
            .field("tile", tile)
            .field("before", before)
            .field("after", after)
            .field("blocks", &format_args!("{blocks}"))
            .finish_non_exhaustive()
    }
}

impl fmt::Display for TokenGrid {
    /// `226 + 13×30×45 tokens`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { grid: [t, h, w], before, after, .. } = &*self.shape;
        if *before > 0 {
            write!(f, "{before} + ")?;
        }
        write!(f, "{t}×{h}×{w}")?;
        if *after > 0 {
            write!(f, " + {after}")?;
        }
        f.write_str(" tokens")
    }
}
