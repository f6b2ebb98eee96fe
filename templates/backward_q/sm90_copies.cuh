// Where a block has what in shared memory, which tile comes when, and the warp that copies.

/// Addresses in shared memory.
struct Shared {
    unsigned base;

    __device__ unsigned q_tile(int slot, int group) const { return base + slot * TILE_BYTES + group * GROUP_BYTES; }
    __device__ unsigned statistics(int slot) const { return base + STATISTICS + slot * sizeof(TileStatistics); }
    __device__ unsigned kv_tile(const Place& place) const { return base + KV_TILES + place.slot * KTile::BYTES; }
    /// A slot's copies have landed; everybody is done with it.
    __device__ Barrier full(int slot) const { return {base + BARRIERS + slot * Barrier::BYTES}; }
    __device__ Barrier empty(int slot) const { return {base + BARRIERS + (STAGES + slot) * Barrier::BYTES}; }
    /// The same of a tile's queries and their statistics.
    __device__ Barrier q_full(int slot) const { return {base + BARRIERS + (2 * STAGES + slot) * Barrier::BYTES}; }
    __device__ Barrier q_empty(int slot) const { return {base + BARRIERS + (2 * STAGES + TILES + slot) * Barrier::BYTES}; }
    /// The tile (negative after the last), its steps and how many of its pieces the mask function decides. Ready with the
    /// queries.
    __device__ unsigned tile(int slot) const { return base + NOTES + 4 * 3 * slot; }
    /// The first key of each piece in a slot. Ready with the slot.
    __device__ unsigned first_keys(int slot) const { return base + NOTES + 4 * (3 * TILES + slot * PIECES); }
    /// The weights of the means in a slot with keys. Ready with the slot.
    __device__ unsigned weights(int slot) const { return base + WEIGHTS + slot * WEIGHTS_BYTES; }
};

/// The work of the copying warp.
__device__ __forceinline__ void copy_tiles(const Params& p, const TensorMaps& maps, TileQueue queue, Shared shared) {
    const bool leader = thread_place() % 32 == 0;
    if (leader) {
        prefetch_map(maps.q);
        prefetch_map(maps.out);
        prefetch_map(maps.d_out);
        prefetch_map(maps.k);
        prefetch_map(maps.v);
        if constexpr (TAIL == TAIL_ROW) {
            prefetch_map(maps.tail_k);
            prefetch_map(maps.tail_v);
        }
    }
    const int tiles = p.q_blocks * p.heads * p.batch;
    Place place;
    TilePlace at;
    for (int tile_place = blockIdx.x; tile_place < tiles;) {
        dim3 row = row_of(p, tile_place);
        row.x = p.q_blocks - 1 - row.x;  // of a causal mask the longest first
        const int kv_head = row.y / (p.heads / p.kv_heads);
        const KeyBlocks::Counts counts = KeyBlocks::counts(p, row);
        const int pieces = counts.all * PIECES_PER_BLOCK;
        int all_pieces = pieces;
<% if constant.TAIL == constant.TAIL_ROW %>        auto means = TailPieces<PIECE>::of(p, row);
        all_pieces += means.total();
<% endif %>        const int steps = (all_pieces + PIECES - 1) / PIECES;
        const auto of_row = [&](const float* tensor, const long long* stride) {
            return tensor ? tensor + row.z * stride[0] + row.y * stride[1] : nullptr;
        };
        LaneStatistics<BLOCK_Q> statistics;  // on their way while slots become free
        statistics.load(of_row(p.lse, p.lse_stride), of_row(p.d_lse, p.d_lse_stride), p.seq_q, row.x * BLOCK_Q);
#pragma unroll
        for (int i = 0; i < OUT_SLOTS; ++i) {
            constexpr int BOXES = BLOCK_Q / OUT_SLOTS / 64;  // of 64 rows
            shared.empty(place.slot).wait(place.parity ^ 1);
            if (leader) {
                shared.full(place.slot).arrive_expecting(BOXES * VTile::PANELS * 64 * 128);
#pragma unroll
                for (int j = 0; j < BOXES * VTile::PANELS; ++j) {
                    const int panel = j % VTile::PANELS, below = j / VTile::PANELS * 64;
                    copy_box(shared.kv_tile(place) + panel * VTile::PANEL_BYTES + below * 128, maps.out, panel * VTile::PANEL_COLS,
                             row.x * BLOCK_Q + i * STEP_KV + below, row.y, row.z, shared.full(place.slot));
                }
            }
            place.advance();
        }
        const Barrier q_full = shared.q_full(at.slot);
        shared.q_empty(at.slot).wait(at.parity ^ 1);
        if (leader) {
            store_shared(shared.tile(at.slot), tile_place - row_of(p, tile_place).x + row.x);
            store_shared(shared.tile(at.slot) + 4, steps);
            store_shared(shared.tile(at.slot) + 8, counts.partial * PIECES_PER_BLOCK);
            q_full.arrive_expecting(TILE_BYTES);
#pragma unroll
            for (int group = 0; group < GROUPS; ++group)
#pragma unroll
                for (int panel = 0; panel < QTile::PANELS; ++panel) {
                    const unsigned to = shared.q_tile(at.slot, group) + panel * QTile::PANEL_BYTES;
                    const int column = panel * QTile::PANEL_COLS, query = row.x * BLOCK_Q + group * GROUP_ROWS;
                    copy_box(to, maps.q, column, query, row.y, row.z, q_full);
                    if (panel < DOutTile::PANELS)
                        copy_box(to + QTile::BYTES, maps.d_out, column, query, row.y, row.z, q_full);
                }
        }
        const auto in_order = [](int query) { return query; };
        statistics.store_lse(shared.statistics(at.slot), p.seq_q - row.x * BLOCK_Q, in_order);
        statistics.store_less(shared.statistics(at.slot) + sizeof(TileStatistics::lse), p.seq_q - row.x * BLOCK_Q, in_order);
        q_full.arrive();
        at.advance();
        KeyBlocks blocks;
        int first_key[PIECES];
        const auto copy_step = [&](auto tile, const TensorMap& map, [[maybe_unused]] const TensorMap& map_of_means, [[maybe_unused]] bool keys) {
            using KvTile = decltype(tile);
            shared.empty(place.slot).wait(place.parity ^ 1);
            if (leader) {
#pragma unroll
                for (int i = 0; i < PIECES; ++i) store_shared(shared.first_keys(place.slot) + 4 * i, first_key[i]);
<% if constant.TAIL == constant.TAIL_ROW %>                copy_keys_or_means<KvTile, PIECE>(p, map_of_means, shared.kv_tile(place), shared.weights(place.slot), shared.full(place.slot),
                                                  map, first_key, keys, kv_head, row);
<% else %>                shared.full(place.slot).arrive_expecting(KvTile::BYTES);
                copy_pieces<KvTile, PIECE>(shared.kv_tile(place), map, first_key, kv_head, row.z, shared.full(place.slot));
<% endif %>            }
            place.advance();
        };
        int next = 0;
        if (leader && steps == 0) next = queue.next(tile_place, tiles);
        for (int step = 0; step < steps; ++step) {
            // Late, so that who has a long tile has not taken another yet; the answer comes under the last copies.
            if (leader && step == steps - 1) next = queue.next(tile_place, tiles);
#pragma unroll
            for (int i = 0; i < PIECES; ++i) {
                const int piece = step * PIECES + i;
                if (piece % (32 * PIECES_PER_BLOCK) == 0)
                    blocks.move_window(p, counts, piece / PIECES_PER_BLOCK, [&] { return row; });
                first_key[i] = blocks.at(piece / PIECES_PER_BLOCK) * BLOCK_KV + piece % PIECES_PER_BLOCK * PIECE;
<% if constant.TAIL == constant.TAIL_ROW %>                if (piece >= pieces && piece < all_pieces) first_key[i] = as_first_key(means.next());
<% endif %>            }
            copy_step(KTile(), maps.k, maps.tail_k, true);
            copy_step(VTile(), maps.v, maps.tail_v, false);
        }
        __syncwarp();
        tile_place = gridDim.x + warp_uniform(next);
    }
    shared.q_empty(at.slot).wait(at.parity ^ 1);
    if (leader) {
        store_shared(shared.tile(at.slot), -1);
        shared.q_full(at.slot).arrive();
    }
    shared.q_full(at.slot).arrive();
}
