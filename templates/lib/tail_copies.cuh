// Copies of keys and of means that stand for keys, by the copy engine (sm_90). After tma.cuh and tail_pieces.cuh.
#pragma once

/// Starts the copy of a step's keys or values to `tile`, some of which may be means. With keys come the weights of means, to
/// `weights`. All of it counts towards `full`.
template <typename KvTile, int PIECE, int PIECES>
__device__ __forceinline__ void copy_keys_or_means(const Params& p, const TensorMap& means, unsigned tile, unsigned weights, Barrier full,
                                                   const TensorMap& map, const int (&first)[PIECES], bool keys, int kv_head, dim3 row) {
    unsigned bytes = KvTile::BYTES;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) bytes += keys && is_of_means(first[i]) ? 4 * PIECE : 0;
    full.arrive_expecting(bytes);
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
        const bool mean = is_of_means(first[i]);
        const int first_row = mean ? first_mean_of(first[i]) : first[i];
        const TensorMap& from = mean ? means : map;
#pragma unroll
        for (int panel = 0; panel < KvTile::PANELS; ++panel)
            copy_box(tile + panel * KvTile::PANEL_BYTES + i * PIECE * 128, from, panel * KvTile::PANEL_COLS, first_row, kv_head, row.z, full);
        if (keys && mean) copy_bytes(weights + i * 4 * PIECE, tail_weights_of(p, row) + first_row, 4 * PIECE, full);
    }
}
