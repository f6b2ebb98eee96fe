// Where a team has what in shared memory, which tile comes when, and the warp that copies.

/// Addresses in a team's shared memory.
struct Shared {
    unsigned base;

    __device__ unsigned q_tile(int group) const { return base + group * QTile::BYTES; }
    __device__ unsigned kv_tile(const Place& place) const { return base + KV_TILES + place.slot * KTile::BYTES; }
    /// A slot's copies have landed; everybody is done with it.
    __device__ Barrier full(int slot) const { return {base + BARRIERS + slot * Barrier::BYTES}; }
    __device__ Barrier empty(int slot) const { return {base + BARRIERS + (STAGES + slot) * Barrier::BYTES}; }
    /// The same of the queries.
    __device__ Barrier q_full() const { return {base + BARRIERS + 2 * STAGES * Barrier::BYTES}; }
    __device__ Barrier q_empty() const { return {base + BARRIERS + (2 * STAGES + 1) * Barrier::BYTES}; }
    /// The tile's number, its steps, how many of its pieces the mask function decides and, with a block tail, its logarithm. Ready with the
    /// queries; where the number is negative there are no more tiles.
    __device__ unsigned tile() const { return base + NOTES; }
    /// The first key of each piece of a slot with keys. Ready with the slot.
    __device__ unsigned first_keys(int slot) const { return base + NOTES + 4 * (TILE_NOTES + slot * PIECES); }
    /// What every row begins with. Ready with the queries, and theirs as long.
    __device__ unsigned value() const { return base + VALUE; }
    /// The weights of the means in a slot. Ready with the slot.
    __device__ unsigned weights(int slot) const { return base + WEIGHTS + slot * WEIGHTS_BYTES; }
};

/// The tile that comes at place `place`: in a head as `row_order` says. Without it the last row comes first: where rows are
/// uneven for a causal mask's sake, that one is the longest.
__device__ __forceinline__ int tile_at(const Params& p, int place) {
    const int heads = p.heads * p.batch, together = heads_in_cache<T, D + D_V>(p.seq_kv, p.heads / p.kv_heads, heads);
    const HeadRow next = head_row_at(place, p.q_blocks, heads, together);
    int q_block = p.q_blocks - 1 - next.row;
    if (p.row_order) {
        const int head = next.head % p.heads, batch = next.head / p.heads;
        q_block = number_at(p.row_order + batch * p.row_order_stride[0] + head * p.row_order_stride[1], next.row, p.q_blocks);
    }
    return next.head * p.q_blocks + q_block;
}

/// The work of a team's copying warp.
__device__ __forceinline__ void copy_tiles(const Params& p, const TensorMaps& maps, TileQueue queue, Shared shared,
                                           int team) {
    const bool leader = thread_place() % 32 == 0;
    if (leader) {
        prefetch_map(maps.q);
        prefetch_map(maps.k);
        prefetch_map(maps.v);
        if constexpr (TAIL == TAIL_ROW) {
            prefetch_map(maps.tail_k);
            prefetch_map(maps.tail_v);
        }
    }
    const int tiles = p.q_blocks * p.heads * p.batch, takers = TEAMS * gridDim.x;
    Place place;
    unsigned q_parity = 1;
    for (int tile_place = team * gridDim.x + blockIdx.x; tile_place < tiles;) {
        const int tile = tile_at(p, tile_place);
        const dim3 row = row_of(p, tile);
        const int kv_head = row.y / (p.heads / p.kv_heads);
        const KeyBlocks::Counts counts = KeyBlocks::counts(p, row);
        const int pieces = counts.all * PIECES_PER_BLOCK;
        int all_pieces = pieces;
<% if constant.TAIL == constant.TAIL_ROW %>        auto means = TailPieces<PIECE>::of(p, row);
        all_pieces += means.total();
<% endif %>        const int steps = (all_pieces + PIECES - 1) / PIECES;
        shared.q_empty().wait(q_parity);
        q_parity ^= 1;
        if (leader) {
            store_shared(shared.tile(), tile);
            store_shared(shared.tile() + 4, steps);
            store_shared(shared.tile() + 8, counts.partial * PIECES_PER_BLOCK);
<% if constant.TAIL == constant.TAIL_BLOCK %>            float lse = -infinity();
            if (p.tail_lse != nullptr && p.tail_out != nullptr)
                lse = __ldg(p.tail_lse + row.z * p.tail_lse_stride[0] + row.y * p.tail_lse_stride[1] + row.x);
            store_shared(shared.tile() + 12, __float_as_int(lse));
            const int value_bytes = lse == -infinity() ? 0 : 4 * p.value_dim;
            shared.q_full().arrive_expecting(GROUPS * QTile::BYTES + value_bytes);
            if (value_bytes > 0)
                copy_bytes(shared.value(),
                           p.tail_out + row.z * p.tail_out_stride[0] + row.y * p.tail_out_stride[1] + row.x * p.tail_out_stride[2],
                           value_bytes, shared.q_full());
<% else %>            shared.q_full().arrive_expecting(GROUPS * QTile::BYTES);
<% endif %>#pragma unroll
            for (int group = 0; group < GROUPS; ++group)
#pragma unroll
                for (int panel = 0; panel < QTile::PANELS; ++panel)
                    copy_box(shared.q_tile(group) + panel * QTile::PANEL_BYTES, maps.q, panel * QTile::PANEL_COLS,
                             row.x * BLOCK_Q + group * GROUP_ROWS, row.y, row.z, shared.q_full());
        }
        KeyBlocks blocks;
        // The step's keys come two places before its values: the scores are computed one step ahead.
        int first_key[PIECES] = {}, before[PIECES];
        const auto copy_step = [&](auto tile, const TensorMap& map, const int (&first)[PIECES], bool keys) {
            using KvTile = decltype(tile);
            shared.empty(place.slot).wait(place.parity ^ 1);
            if (leader) {
#pragma unroll
                for (int i = 0; i < PIECES; ++i)
                    if (keys) store_shared(shared.first_keys(place.slot) + 4 * i, first[i]);
<% if constant.TAIL == constant.TAIL_ROW %>                copy_keys_or_means<KvTile, PIECE>(p, keys ? maps.tail_k : maps.tail_v, shared.kv_tile(place), shared.weights(place.slot),
                                                  shared.full(place.slot), map, first, keys, kv_head, row);
<% else %>                shared.full(place.slot).arrive_expecting(KvTile::BYTES);
                copy_pieces<KvTile, PIECE>(shared.kv_tile(place), map, first, kv_head, row.z, shared.full(place.slot));
<% endif %>            }
            place.advance();
        };
        int next = 0;
        for (int step = 0; step <= steps; ++step) {
            // Late, so that who has a long tile has not taken another yet; the answer comes under the last copies.
            if (leader && step == max(steps - 1, 0)) next = queue.next(tile_place, tiles);
#pragma unroll
            for (int i = 0; i < PIECES; ++i) before[i] = first_key[i];
            if (step < steps) {
#pragma unroll
                for (int i = 0; i < PIECES; ++i) {
                    const int piece = step * PIECES + i;
                    if (piece % (32 * PIECES_PER_BLOCK) == 0)
                        blocks.move_window(p, counts, piece / PIECES_PER_BLOCK, [&] { return row; });
                    first_key[i] = blocks.at(piece / PIECES_PER_BLOCK) * BLOCK_KV + piece % PIECES_PER_BLOCK * PIECE;
<% if constant.TAIL == constant.TAIL_ROW %>                    if (piece >= pieces && piece < all_pieces) first_key[i] = as_first_key(means.next());
<% endif %>                }
                copy_step(KTile(), maps.k, first_key, true);
            }
            if (step > 0) copy_step(VTile(), maps.v, before, false);
        }
        __syncwarp();
        tile_place = takers + warp_uniform(next);
    }
    shared.q_empty().wait(q_parity);
    if (leader) {
        store_shared(shared.tile(), -1);
        shared.q_full().arrive();
    }
}
