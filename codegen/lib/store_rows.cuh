// From a warp's accumulators to a tensor by the copy engine (sm_90). After mma.cuh, tma.cuh and wgmma.cuh.
#pragma once

/// Where 16 rows of N_TILES * 8 columns wait for the copy engine: one tile a warp.
template <int N_TILES>
using RowsTile = SwizzledTile<16, 8 * N_TILES>;

/// How BYTES of shared memory are divided, barriers and the like taken off: FIRST bytes of something else, a ring of as many slots of
/// SLOT bytes as fit, up to 8, and behind it a RowsTile for each of WARPS warps, where the ring has five slots beside them.
template <unsigned BYTES, unsigned FIRST, unsigned SLOT, int WARPS, int N_TILES>
struct RingAndRows {
    using Rows = RowsTile<N_TILES>;
    static constexpr unsigned ROWS_BYTES = WARPS * Rows::BYTES;
    static constexpr bool HAS_ROWS = FIRST + ROWS_BYTES + 5 * SLOT <= BYTES;
    static constexpr int FITTING = (BYTES - FIRST - (HAS_ROWS ? ROWS_BYTES : 0)) / SLOT;
    static constexpr int SLOTS = FITTING < 8 ? FITTING : 8;
    static constexpr unsigned ROWS = FIRST + SLOTS * SLOT;
    static constexpr unsigned END = ROWS + (HAS_ROWS ? ROWS_BYTES : 0);
};

/// Writes a warp's 16 rows, the upper eight times `by[0]` and the lower times `by[1]`, to the box of `map` that begins at `row`; rows and
/// columns past the tensor's ends are left out. `tile`: the warp's RowsTile. Before the block ends its first lane waits for
/// the last copy: wait_stores_read.
template <typename Element, int N_TILES>
__device__ __forceinline__ void store_rows(const float (&sums)[N_TILES][4], const float (&by)[2], unsigned tile,
                                           const TensorMap& map, int row, int head, int batch) {
    using Rows = RowsTile<N_TILES>;
    const int lane = thread_place() % 32;
    if (lane == 0) wait_stores_read();
    __syncwarp();
    // Four 8 x 8 pieces at a time: the upper and the lower ones of two neighbouring columns of them.
    const unsigned to = tile + lane % 16 * 128;
#pragma unroll
    for (int n = 0; n < N_TILES; n += 2) {
        unsigned packed[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float(&pair)[4] = sums[n + i / 2];
            packed[i] = Mma<Element>::pack(pair[i % 2 * 2] * by[i % 2], pair[i % 2 * 2 + 1] * by[i % 2]);
        }
        const int chunk = n % 8 + lane / 16;
        store_matrices(to + n / 8 * Rows::PANEL_BYTES + ((chunk ^ lane % 8) << 4), packed);
    }
    publish_shared();
    __syncwarp();
    if (lane == 0) {
#pragma unroll
        for (int panel = 0; panel < Rows::PANELS; ++panel)
            store_box(tile + panel * Rows::PANEL_BYTES, map, panel * Rows::PANEL_COLS, row, head, batch);
        commit_stores();
    }
}
