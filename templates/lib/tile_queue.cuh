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

/// A row of a head, both counted from 0, heads of all batches through.
struct HeadRow {
    int head, row;
};

/// What comes at place `place` of `heads` heads with `rows` rows each: one head after another, so that its keys stay in the L2
/// cache, but the last `together` heads a row of each in turn. Where long rows come first, a last head on its own would begin
/// its long ones when the rest of the GPU is about to be done.
__device__ __forceinline__ HeadRow head_row_at(int place, int rows, int heads, int together) {
    const int apart = heads - together, beyond = place - apart * rows;
    if (beyond < 0) return {place / rows, place % rows};
    return {apart + beyond % together, beyond / together};
}

/// As many query heads, of `heads`, as have the keys and values that they read in the L2 cache together: one at least.
template <typename T, int D> __device__ __forceinline__ int heads_in_cache(int seq_kv, int heads_per_kv_head, int heads) {
    constexpr int CACHE = 36 << 20, BYTES = 2 * D * static_cast<int>(sizeof(T));
    return min(max(CACHE / BYTES / seq_kv, 1) * heads_per_kv_head, heads);
}
