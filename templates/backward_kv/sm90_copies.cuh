// Where a block has what in shared memory, which tile comes when, and the warps that bring what is computed with.

/// Addresses in shared memory.
struct Shared {
    unsigned base;

    /// Keys, then values.
    __device__ unsigned k_tile() const { return base; }
    /// Queries, then their d_out.
    __device__ unsigned q_tile(int slot) const { return base + 2 * Tile::BYTES + slot * SLOT_BYTES; }
    __device__ unsigned statistics(int slot) const { return base + STATISTICS + slot * STATISTICS_BYTES; }
    /// The first operand that subtracts delta.
    __device__ unsigned subtrahend() const { return base + SUBTRAHEND; }
    /// A slot's copies and statistics have landed; everybody is done with it.
    __device__ Barrier full(int slot) const { return {base + BARRIERS + slot * Barrier::BYTES}; }
    __device__ Barrier empty(int slot) const { return {base + BARRIERS + (STAGES + slot) * Barrier::BYTES}; }
    /// The same of the keys and values.
    __device__ Barrier keys_full() const { return {base + BARRIERS + 2 * STAGES * Barrier::BYTES}; }
    __device__ Barrier keys_empty() const { return {base + BARRIERS + (2 * STAGES + 1) * Barrier::BYTES}; }
    /// A tile's number is there, for the warp that brings the statistics; it has been read.
    __device__ Barrier mail_full(int slot) const { return {base + BARRIERS + (2 * STAGES + 2 + slot) * Barrier::BYTES}; }
    __device__ Barrier mail_empty(int slot) const { return {base + BARRIERS + (2 * STAGES + 2 + MAILS + slot) * Barrier::BYTES}; }
    /// Head, first query, flags, and whether some queries attend to nothing. Ready with the slot.
    __device__ unsigned note(int slot) const { return base + NOTES + slot * NOTE_BYTES; }
    /// A tile (negative after the last), for the warp that brings the statistics.
    __device__ unsigned mail(int slot) const { return note(STAGES + 1) + 4 * slot; }
    /// The tile (negative after the last), and LAST where it has no steps. Ready with the keys.
    __device__ unsigned tile() const { return note(STAGES); }
};
constexpr int DECIDED = 1;  // the mask function decides on elements
constexpr int LAST = 2;  // of this tile

/// A tile.
struct Work {
    int first_key, kv_head, batch;

    __device__ __forceinline__ Work(const Params& p, int tile) {
        const int tiles = p.kv_blocks * TILES_PER_BLOCK, rest = tile / tiles;
        first_key = (tile - rest * tiles) * TILE_KV;
        kv_head = rest % p.kv_heads;
        batch = rest / p.kv_heads;
    }
};

/// The tile that comes at place `place`: one head's run side by side, so that its queries stay in the L2 cache.
__device__ __forceinline__ int tile_at(const Params& p, int place) {
    const Work next(p, place);
    const int block = next.first_key / BLOCK_KV;
    return place + (key_block_at(p, block, next.kv_head, next.batch) - block) * TILES_PER_BLOCK;
}

/// Fills a slot with a step's queries and d_out.
__device__ __forceinline__ void copy_step(const TensorMaps& maps, Shared shared, const Place& place, int batch, const Steps::Step& step,
                                          bool last) {
    const Barrier full = shared.full(place.slot);
    shared.empty(place.slot).wait(place.parity ^ 1);
    if (thread_place() % 32 != 0) return;
    store_shared(shared.note(place.slot), step.head);
    store_shared(shared.note(place.slot) + 4, step.first);
    store_shared(shared.note(place.slot) + 8, (step.decided ? DECIDED : 0) | (last ? LAST : 0));
    full.arrive_expecting(SLOT_BYTES);
#pragma unroll
    for (int i = 0; i < QTile::PANELS * (STEP_Q / 64); ++i) {
        const int panel = i % QTile::PANELS, below = i / QTile::PANELS * 64, column = panel * QTile::PANEL_COLS;
        const unsigned to = shared.q_tile(place.slot) + panel * QTile::PANEL_BYTES + below * 128;
        copy_box(to, maps.q, column, step.first + below, step.head, batch, full);
        copy_box(to + QTile::BYTES, maps.d_out, column, step.first + below, step.head, batch, full);
    }
}

/// The work of the copying warp.
__device__ __forceinline__ void copy_tiles(const Params& p, const TensorMaps& maps, TileQueue queue, Shared shared) {
    const bool leader = thread_place() % 32 == 0;
    if (leader) {
        prefetch_map(maps.k);
        prefetch_map(maps.v);
        prefetch_map(maps.q);
        prefetch_map(maps.d_out);
    }
    const int tiles = p.kv_blocks * TILES_PER_BLOCK * p.kv_heads * p.batch;
    Place place;
    MailPlace mail;
    const auto send = [&](int tile) {
        shared.mail_empty(mail.slot).wait(mail.parity ^ 1);
        if (leader) {
            store_shared(shared.mail(mail.slot), tile);
            shared.mail_full(mail.slot).arrive();
        }
        mail.advance();
    };
    unsigned keys_parity = 1;
    for (int tile_place = blockIdx.x; tile_place < tiles;) {
        const int tile = tile_at(p, tile_place);
        send(tile);
        const Work work(p, tile);
        Steps steps(p, work.first_key / BLOCK_KV, work.kv_head, work.batch);
        Steps::Step step = steps.next(p);
        if (work.first_key >= p.seq_kv) step.head = -1;  // the half of a block without keys
        shared.keys_empty().wait(keys_parity);
        keys_parity ^= 1;
        if (leader) {
            store_shared(shared.tile(), tile);
            store_shared(shared.tile() + 4, step.head < 0 ? LAST : 0);
            shared.keys_full().arrive_expecting(2 * Tile::BYTES);
#pragma unroll
            for (int panel = 0; panel < Tile::PANELS; ++panel) {
                const int column = panel * Tile::PANEL_COLS;
                const int first = TAIL == TAIL_ROW ? work.first_key % p.keys : work.first_key;
                const unsigned to = shared.k_tile() + panel * Tile::PANEL_BYTES;
                copy_box(to, maps.k, column, first, work.kv_head, work.batch, shared.keys_full());
                copy_box(to + Tile::BYTES, maps.v, column, first, work.kv_head, work.batch, shared.keys_full());
            }
        }
        int next = 0;
        if (leader && step.head < 0) next = queue.next(tile_place, tiles);
        while (step.head >= 0) {
            const Steps::Step following = steps.next(p);
            const bool last = following.head < 0;
            // Late, so that who has a long tile has not taken another yet; the answer comes under the last copies.
            if (leader && last) next = queue.next(tile_place, tiles);
            copy_step(maps, shared, place, work.batch, step, last);
            place.advance();
            step = following;
        }
        __syncwarp();
        tile_place = gridDim.x + warp_uniform(next);
    }
    send(-1);
    shared.keys_empty().wait(keys_parity);
    if (leader) {
        store_shared(shared.tile(), -1);
        shared.keys_full().arrive();
    }
}

/// The work of the warp that brings what is known of the queries. It walks through the same steps as the one that copies, for that has
/// enough to do.
__device__ __forceinline__ void bring_statistics(const Params& p, Shared shared) {
    Place place;
    MailPlace mail;
    while (true) {
        shared.mail_full(mail.slot).wait(mail.parity);
        const int tile = warp_uniform(load_shared(shared.mail(mail.slot)));
        if (thread_place() % 32 == 0) shared.mail_empty(mail.slot).arrive();
        mail.advance();
        if (tile < 0) break;
        const Work work(p, tile);
        Steps steps(p, work.first_key / BLOCK_KV, work.kv_head, work.batch);
        Steps::Step step = steps.next(p);
        if (work.first_key >= p.seq_kv) step.head = -1;
        LaneStatistics<STEP_Q> statistics;
        const auto load = [&] {
            statistics.load(p.lse + work.batch * p.lse_stride[0] + step.head * p.lse_stride[1],
                            p.delta + work.batch * p.delta_stride[0] + step.head * p.delta_stride[1], p.seq_q, step.first);
        };
        if (step.head >= 0) load();
        while (step.head >= 0) {
            shared.empty(place.slot).wait(place.parity ^ 1);
            const unsigned to = shared.statistics(place.slot);
            const int queries = p.seq_q - step.first;
            const bool empty = statistics.store_lse(to + LSE, queries, statistics_place);
            if constexpr (DELTA_BY_PRODUCT) Subtrahend::store_rows(to + DELTA, statistics, queries);
            else statistics.store_less(to + DELTA, queries, statistics_place);
            const bool any_empty = __any_sync(0xffffffffu, empty);
            if (thread_place() % 32 == 0) store_shared(shared.note(place.slot) + 12, any_empty);
            shared.full(place.slot).arrive();
            place.advance();
            step = steps.next(p);
            if (step.head >= 0) load();
        }
    }
}
