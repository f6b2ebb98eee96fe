// Tiles handed out to the blocks of a persistent grid as they finish.
#pragma once

/// A launch's counter of tiles, 0 when the launch starts and 0 again when it has ended; null where the launcher has none.
///
/// A block starts with tile blockIdx.x and asks for the next until there is none, and then no more. That makes as many
/// questions as there are tiles, and the last of them brings the counter back to 0 for the launch after this one.
struct TileQueue {
    unsigned* asked;

    /// The tile after `tile`; none is left where that is `tiles` or more. One thread of the block asks.
    __device__ __forceinline__ int next(int tile, int tiles) const {
        return gridDim.x + (asked ? atomicInc(asked, tiles - 1) : tile);
    }
};
static_assert(sizeof(TileQueue) == 8, "TileQueue differs from the Rust side");
