// In which order the rows of many heads are worked on.
#pragma once

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
/// `COLUMNS`: of a key and its value.
template <typename T, int COLUMNS> __device__ __forceinline__ int heads_in_cache(int seq_kv, int heads_per_kv_head, int heads) {
    constexpr int CACHE = 36 << 20, BYTES = COLUMNS * static_cast<int>(sizeof(T));
    return min(max(CACHE / BYTES / seq_kv, 1) * heads_per_kv_head, heads);
}
