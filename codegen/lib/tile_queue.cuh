// Tiles handed out to the blocks of a persistent grid as they finish.
#pragma once

/// A launch's counter of tiles, 0 when the launch starts and 0 again when it has ended; null where the launcher has none.
///
/// Whoever takes tiles (a block, or each of its parts) has a number of its own from 0 on, and starts with the tile of that
/// number, if there is one. Then it asks for the next until there is none, and no more. That makes as many questions as
/// there are tiles, and the last of them brings the counter back to 0 for the launch after this one.
struct TileQueue {
    unsigned* asked;

    /// The tile after `tile`, less the number of all takers: none is left where the sum is `tiles` or more. One thread asks,
    /// and adds late: the answer takes its time.
    __device__ __forceinline__ int next(int tile, int tiles) const {
        return asked ? static_cast<int>(atomicInc(asked, tiles - 1)) : tile;
    }
};
static_assert(sizeof(TileQueue) == 8, "TileQueue differs from the Rust side");
