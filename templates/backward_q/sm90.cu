// Block-sparse attention, backward by queries, for Hopper: copies by the copy engine (TMA), products of warpgroups (wgmma).
//
// Thread blocks stay for many tiles of BLOCK_Q queries. Their last warpgroup only copies: the tile's queries and d_out, into slots of a
// ring first its rows of out, then per step the STEP_KV keys and values of one or more key blocks, gathered side by side. Each other
// warpgroup owns 64 queries. Under the arithmetic of one step run the product of the step before it and those of the other
// warpgroup.
<% include "lib/thread.cuh" %>
<% include "lib/math.cuh" %>
<% include "lib/mma.cuh" %>
<% include "lib/quad.cuh" %>
<% include "lib/key_blocks.cuh" %>
<% include "lib/mbarrier.cuh" %>
<% include "lib/tma.cuh" %>
<% include "lib/tile_queue.cuh" %>
<% include "lib/query_statistics.cuh" %>
<% include "lib/write_sums.cuh" %>
<% set wgmma_widths = [64, constant.STEP_KV, constant.D] %>
<% include "lib/wgmma.cuh" %>
<% include "lib/store_rows.cuh" %>
<% include "lib/add_mean.cuh" %>
<% if constant.TAIL == constant.TAIL_ROW %><% include "lib/tail_pieces.cuh" %><% include "lib/tail_copies.cuh" %>
<% endif %>
constexpr int GROUP_ROWS = 64;                // queries of a warpgroup
constexpr int GROUPS = BLOCK_Q / GROUP_ROWS;  // warpgroups that compute
constexpr int PIECE = 64;                     // keys of one copy
constexpr int PIECES = STEP_KV / PIECE;       // of a step
constexpr int PIECES_PER_BLOCK = BLOCK_KV / PIECE;

static_assert(BLOCK_Q == GROUP_ROWS * GROUPS && STEP_KV == PIECE * PIECES && BLOCK_KV == PIECE * PIECES_PER_BLOCK);
static_assert(THREADS == 128 * (GROUPS + 1), "a warpgroup for every 64 queries and one for the copies");

using QTile = SwizzledTile<GROUP_ROWS, D>;
using DOutTile = SwizzledTile<GROUP_ROWS, D_V>;
using KTile = SwizzledTile<STEP_KV, D>;
using VTile = SwizzledTile<STEP_KV, D_V>;
static_assert(D_V <= D, "values come into the slots of keys");
constexpr int OUT_SLOTS = (BLOCK_Q + STEP_KV - 1) / STEP_KV;  // that a tile's rows of out take

using TileStatistics = Statistics<BLOCK_Q>;

// Shared memory, from a multiple of 1024 on: q and d_out of each warpgroup, of two tiles where there is room for them beside eight
// slots, the ring's tiles, rows on their way out, then the statistics of each tile, barriers, and what the copying warp tells the
// others.
constexpr unsigned GROUP_BYTES = QTile::BYTES + DOutTile::BYTES;
constexpr unsigned TILE_BYTES = GROUPS * GROUP_BYTES;
// Weights of the means in a slot, for as many slots as there may be.
constexpr unsigned WEIGHTS_BYTES = TAIL == TAIL_ROW ? 4 * STEP_KV : 0;
constexpr int MOST_STAGES = D > 128 ? 4 : 8;
template <int TILES>
using RoomFor = RingAndRows<SMEM_BYTES - 512 - MOST_STAGES * WEIGHTS_BYTES - TILES * sizeof(TileStatistics), TILES * TILE_BYTES, KTile::BYTES, 4 * GROUPS, D / 8>;
constexpr int TILES = RoomFor<2>::SLOTS == 8 && RoomFor<2>::HAS_ROWS ? 2 : 1;
constexpr unsigned KV_TILES = TILES * TILE_BYTES;
using Room = RoomFor<TILES>;
constexpr int STAGES = Room::SLOTS;
constexpr unsigned STATISTICS = Room::END;
constexpr unsigned WEIGHTS = STATISTICS + TILES * sizeof(TileStatistics);
constexpr unsigned BARRIERS = WEIGHTS + STAGES * WEIGHTS_BYTES;
constexpr unsigned NOTES = BARRIERS + 2 * (STAGES + TILES) * Barrier::BYTES;
static_assert(STAGES >= 3, "a step's keys are in the ring together with the next one's keys and values");
// Within a turn a warpgroup waits for values. They must not wait for the keys of the step before, which the other warpgroup
// holds until its own turn.
static_assert(!PING_PONG || STAGES >= 4, "turns need a fourth slot");
static_assert(NOTES + 4 * (STAGES * PIECES + 3 * TILES) <= SMEM_BYTES && WEIGHTS % 16 == 0);
static_assert(TAIL == TAIL_NONE || !HAS_SCORE_MOD, "what a score function makes of a mean is not defined");
static_assert(PIECE == TAIL_PIECE && (TAIL != TAIL_ROW || STAGES <= MOST_STAGES));

// Registers are handed out anew among the warpgroups.
constexpr int COPY_REGISTERS = GROUPS == 1 ? 32 : 24;
constexpr int COMPUTE_REGISTERS = GROUPS == 1 ? 224 : 240;

using Products = float[STEP_KV / 8][4];
using Operand = unsigned[STEP_KV / 16][4];
using Sums = float[1][D / 8][4];
using Place = RingPlace<STAGES>;
using TilePlace = RingPlace<TILES>;

<% include "backward_q/sm90_copies.cuh" %>

/// Calls `change(product, index, row, key)` for each product of this thread in piece `piece`, row and key counted from the
/// tile's and the piece's first.
template <typename Change>
__device__ __forceinline__ void each_product(Products& products, int piece, Change change) {
    const int lane = thread_place() % 32, first_row = thread_place() / 32 * 16;
#pragma unroll
    for (int n = 0; n < PIECE / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            change(products[piece * (PIECE / 8) + n][i], piece * (PIECE / 2) + n * 4 + i, first_row + lane / 4 + i / 2 * 8,
                   n * 8 + lane % 4 * 2 + i % 2);
}

/// Writes delta of this thread's two queries.
__device__ __forceinline__ void write_delta(const Params& p, dim3 row, const float (&delta)[2]) {
    float* to = p.delta + row.z * p.delta_stride[0] + row.y * p.delta_stride[1];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int query = row.x * BLOCK_Q + thread_place() / 32 * 16 + half * 8 + thread_place() % 32 / 4;
        if (thread_place() % 4 == 0 && query < p.seq_q) to[query] = delta[half];
    }
}

/// Starts the products of a warpgroup's rows of d_out with the N rows from `tile` on, of values or of out.
template <int N>
__device__ __forceinline__ void start_products_of_d_out(float (&products)[N / 8][4], unsigned d_out_tile, unsigned tile) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < D_V / 16; ++k)
        Wgmma<T, N>::multiply(products, DOutTile::along_rows(d_out_tile, k), VTile::along_rows(tile, k), k > 0);
    wgmma_commit();
}

/// What is on the diagonal in this thread's rows: the products of d_out and out, row by row.
__device__ __forceinline__ void read_diagonal(float (&found)[2], const float (&products)[GROUP_ROWS / 8][4]) {
    const int lane = thread_place() % 32, warp = thread_place() / 32 % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float of_quad = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float(&columns)[4] = products[2 * i + half];
            if (i == warp) of_quad = lane / 4 % 2 ? columns[half * 2 + 1] : columns[half * 2];
        }
        found[half] = __shfl_sync(0xffffffffu, of_quad, lane / 8, 4);
    }
}

/// The work of a computing warpgroup.
__device__ __forceinline__ void compute_tiles(const Params& p, const Functions& f, const TensorMap& map, Shared shared,
                                              unsigned char* smem, int group) {
    const bool speaker = thread_place() % 32 == 0;
    const float to_exponent = HAS_SCORE_MOD ? LOG2_E : LOG2_E * p.scale;
    const auto release = [&](Barrier barrier) {
        __syncwarp();  // no lane has anything of it under way
        if (speaker) barrier.arrive();
    };
    // Notes are read by the lane alone that says when they may change.
    const auto read_note = [&](unsigned address) { return warp_uniform(speaker ? load_shared(address) : 0); };
    // Warpgroups take turns at starting their products: one's arithmetic then runs under the other's products.
    constexpr bool IN_TURN = PING_PONG && GROUPS == 2;
    const NamedBarrier my_turn{1 + group, 256}, your_turn{2 - group, 256};
    if (IN_TURN && group == 1) your_turn.arrive();

    Place place;
    TilePlace at;
    while (true) {
        shared.q_full(at.slot).wait(at.parity);
        const int tile = read_note(shared.tile(at.slot));
        if (__any_sync(0xffffffffu, tile < 0)) break;
        const int steps = read_note(shared.tile(at.slot) + 4);
        int decided = read_note(shared.tile(at.slot) + 8);  // pieces from this step on that the mask function decides
        const TileStatistics& of_tile = *reinterpret_cast<const TileStatistics*>(smem + STATISTICS + at.slot * sizeof(TileStatistics));
        // First delta, from slots that both warpgroups give back.
        float of_rows[GROUP_ROWS / 8][4];
        Place of_out = place, mine = place;
#pragma unroll
        for (int i = 0; i < OUT_SLOTS; ++i) {
            shared.full(of_out.slot).wait(of_out.parity);
            if (group * GROUP_ROWS / STEP_KV == i) mine = of_out;
            of_out.advance();
        }
        start_products_of_d_out<GROUP_ROWS>(of_rows, warp_uniform(shared.q_tile(at.slot, group)) + QTile::BYTES,
                                            warp_uniform(shared.kv_tile(mine)) + group * GROUP_ROWS % STEP_KV * 128);
        Sums dq;
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) dq[0][n][i] = 0.0f;
        hold(dq[0]);  // zeros moved in between the products would make these wait for each other
        Operand of_gradients;
        [[maybe_unused]] unsigned queries[D / 16][4];
        if constexpr (Q_KEPT) QTile::hold_rows(queries, shared.q_tile(at.slot, group));
        // Of this thread's two queries.
        const int my_query = thread_place() / 32 * 16 + thread_place() % 32 / 4;
        const float lse[2] = {of_tile.lse[my_query], of_tile.lse[my_query + 8]};
        wgmma_wait<0>();
        hold(of_rows);
#pragma unroll
        for (int i = 0; i < OUT_SLOTS; ++i) {
            release(shared.empty(place.slot));
            place.advance();
        }
        float delta[2];
        read_diagonal(delta, of_rows);
#pragma unroll
        for (int half = 0; half < 2; ++half)
            delta[half] = lse[half] == infinity() ? 0.0f : delta[half] - of_tile.less[my_query + half * 8];
        write_delta(p, row_of(p, tile), delta);
        Place before;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            const Place keys = place;
            place.advance();
            const Place values = place;
            place.advance();
            // Through ordinary registers each product would wait for its descriptor.
            const unsigned q_tile = warp_uniform(shared.q_tile(at.slot, group)), d_out_tile = q_tile + QTile::BYTES;
            const unsigned k_tile = warp_uniform(shared.kv_tile(keys)), v_tile = warp_uniform(shared.kv_tile(values));
            Products weights, gradients;
            shared.full(keys.slot).wait(keys.parity);
            int first_keys[PIECES];
            bool edge = false;
#pragma unroll
            for (int i = 0; i < PIECES; ++i) {
                first_keys[i] = read_note(shared.first_keys(keys.slot) + 4 * i);
                edge |= first_keys[i] + PIECE > p.seq_kv;
            }
            if (IN_TURN) my_turn.wait();
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < D / 16; ++k) {
                if constexpr (Q_KEPT) Wgmma<T, STEP_KV>::multiply_held(weights, queries[k], KTile::along_rows(k_tile, k), k > 0);
                else Wgmma<T, STEP_KV>::multiply(weights, QTile::along_rows(q_tile, k), KTile::along_rows(k_tile, k), k > 0);
            }
            wgmma_commit();
            // The keys of the step before it must go before these values can come.
            if (step > 0) {
                wgmma_wait<1>();
                release(shared.empty(before.slot));
            }
            hold(dq[0]);
            hold(of_gradients);
            shared.full(values.slot).wait(values.parity);
            start_products_of_d_out<STEP_KV>(gradients, d_out_tile, v_tile);
            if (IN_TURN) your_turn.arrive();
            wgmma_wait<1>();
            hold(weights);

            const dim3 row = HAS_SCORE_MOD || HAS_MASK_MOD ? row_of(p, tile) : dim3();
            [[maybe_unused]] float slopes[STEP_KV / 2] = {};  // the derivative of the score function, where there is one
            if constexpr (HAS_SCORE_MOD) {
#pragma unroll
                for (int piece = 0; piece < PIECES; ++piece)
                    each_product(weights, piece, [&](float& weight, int index, int query, int key) {
                        const float score = weight * p.scale;
                        const int q = row.x * BLOCK_Q + query, kv = first_keys[piece] + key;
                        weight = f.score_mod(score, row.z, row.y, q, kv);
                        slopes[index] = f.score_mod.gradient(score, row.z, row.y, q, kv);
                    });
            }
            // Scores become exponents of two, and only then -inf: it would not survive a scale of 0 or less.
#pragma unroll
            for (int n = 0; n < STEP_KV / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) weights[n][i] = fmaf(weights[n][i], to_exponent, -lse[i / 2]);
<% if constant.TAIL == constant.TAIL_ROW %>#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece)
                if (is_of_means(first_keys[piece]))
                    each_product(weights, piece, [&](float& weight, int, int, int mean) {
                        const float of_mean = __int_as_float(load_shared(shared.weights(keys.slot) + 4 * (piece * PIECE + mean)));
                        weight = weighted_exponent(weight, of_mean);
                    });
<% endif %>            // A key past the end has a score of 0, whose power of 2 can be infinite.
            if (edge) {
#pragma unroll
                for (int piece = 0; piece < PIECES; ++piece)
                    each_product(weights, piece, [&](float& weight, int, int, int key) {
                        if (first_keys[piece] + key >= p.seq_kv) weight = -infinity();
                    });
            }
            if constexpr (HAS_MASK_MOD) {
#pragma unroll
                for (int piece = 0; piece < PIECES; ++piece)
                    if (piece < decided)
                        each_product(weights, piece, [&](float& weight, int, int query, int key) {
                            if (!f.mask_mod(row.z, row.y, row.x * BLOCK_Q + query, first_keys[piece] + key))
                                weight = -infinity();
                        });
            }
#pragma unroll
            for (int n = 0; n < STEP_KV / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) weights[n][i] = exp2_approx(weights[n][i]);
            wgmma_wait<0>();
            hold(gradients);
            release(shared.empty(values.slot));
            if (step + 1 == steps) release(shared.q_empty(at.slot));
#pragma unroll
            for (int n = 0; n < STEP_KV / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float gradient = weights[n][i] * (gradients[n][i] - delta[i / 2]);
                    if constexpr (HAS_SCORE_MOD) gradient *= slopes[n * 4 + i];
                    // What has no weight has no gradient, be its d_out · v or its derivative what it may.
                    if constexpr (HAS_SCORE_MOD || HAS_MASK_MOD || TAIL == TAIL_ROW) gradient = weights[n][i] == 0.0f ? 0.0f : gradient;
                    gradients[n][i] = gradient;
                }
#pragma unroll
            for (int k = 0; k < STEP_KV / 16; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    of_gradients[k][i] =
                        Mma<T>::pack(gradients[2 * k + i / 2][i % 2 * 2], gradients[2 * k + i / 2][i % 2 * 2 + 1]);
            hold(dq[0]);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < STEP_KV / 16; ++k)
                Wgmma<T, D>::multiply_down(dq[0], of_gradients[k], KTile::down_columns(k_tile, k), true);
            wgmma_commit();
            before = keys;
            decided -= PIECES;
        }
        wgmma_wait<0>();
        hold(dq[0]);
        hold(of_gradients);
        release(steps > 0 ? shared.empty(before.slot) : shared.q_empty(at.slot));
        at.advance();

        const dim3 row = row_of(p, tile);
        const int first_row = row.x * BLOCK_Q + thread_place() / 32 * 16;
        float by[2] = {p.scale, p.scale};
        if constexpr (TAIL == TAIL_BLOCK) {
            if (p.dq_mean != nullptr) {
                const float* mean =
                    p.dq_mean + row.z * p.dq_mean_stride[0] + row.y * p.dq_mean_stride[1] + row.x * p.dq_mean_stride[2];
                add_mean(dq, p.scale, mean, p.head_dim);
                by[0] = by[1] = 1.0f;
            }
        }
        if constexpr (Room::HAS_ROWS) {
            store_rows<T>(dq[0], by, shared.base + Room::ROWS + thread_place() / 32 * Room::Rows::BYTES, map, first_row, row.y, row.z);
        } else {
            write_sums(dq, p.dq + row.z * p.dq_stride[0] + row.y * p.dq_stride[1] + first_row * p.dq_stride[2],
                       p.dq_stride[2], p.seq_q - first_row, p.head_dim, [&](int, int) { return by[0]; });
        }
    }
    if (Room::HAS_ROWS && speaker) wait_stores_read();
}

extern "C" __global__ void __launch_bounds__(THREADS, GROUPS == 1 ? 2 : 1)
TILEWRIGHT_KERNEL(const __grid_constant__ Params p, const __grid_constant__ Functions f,
                  const __grid_constant__ TensorMaps maps, const TileQueue queue) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const Shared shared{shared_address(smem)};
    if (threadIdx.x == 0) {
#pragma unroll
        for (int slot = 0; slot < STAGES; ++slot) {
            shared.full(slot).init(1);
            shared.empty(slot).init(4 * GROUPS);
        }
#pragma unroll
        for (int slot = 0; slot < TILES; ++slot) {
            shared.q_full(slot).init(33);  // every lane of the copying warp, and the copies
            shared.q_empty(slot).init(4 * GROUPS);
        }
        publish_barriers();
    }
    __syncthreads();
    const int group = warp_uniform(threadIdx.x / 128);
    if (group == GROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPY_REGISTERS));
        if (threadIdx.x / 32 == 4 * GROUPS) copy_tiles(p, maps, queue, shared);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COMPUTE_REGISTERS));
        compute_tiles(p, f, maps.dq, shared, smem, group);
    }
}
