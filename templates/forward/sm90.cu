// Block-sparse attention, forward, for Hopper: copies by the copy engine (TMA), products of warpgroups (wgmma).
//
// One thread block a multiprocessor stays for many tiles of BLOCK_Q queries. Its last warpgroup only copies: the tile's
// queries, then per step the STEP_KV keys and values of one or more key blocks, gathered side by side into a slot of a
// ring. Each other warpgroup owns 64 queries. Under the softmax of one step run the products of the step before it and the
// scores of the one after, and those of the other warpgroup. TEAMS of such warpgroups, each with a copying warp, ring and
// tile of its own, hide each other's starts and ends.
<% include "lib/thread.cuh" %>
<% include "lib/math.cuh" %>
<% include "lib/mma.cuh" %>
<% include "lib/quad.cuh" %>
<% include "lib/key_blocks.cuh" %>
<% include "lib/mbarrier.cuh" %>
<% include "lib/tma.cuh" %>
<% include "lib/tile_queue.cuh" %>
<% include "lib/given_order.cuh" %>
<% include "lib/head_rows.cuh" %>
<% set wgmma_widths = [constant.STEP_KV, constant.D_V] %>
<% include "lib/wgmma.cuh" %>
<% include "lib/store_rows.cuh" %>
<% include "lib/write_sums.cuh" %>
<% if constant.TAIL == constant.TAIL_ROW %><% include "lib/tail_pieces.cuh" %><% include "lib/tail_copies.cuh" %>
<% endif %>
constexpr int GROUP_ROWS = 64;                // queries of a warpgroup
constexpr int GROUPS = BLOCK_Q / GROUP_ROWS;  // warpgroups that compute a tile
constexpr int PIECE = 64;                     // keys of one copy
constexpr int PIECES = STEP_KV / PIECE;       // of a step
constexpr int PIECES_PER_BLOCK = BLOCK_KV / PIECE;

static_assert(BLOCK_Q == GROUP_ROWS * GROUPS && STEP_KV == PIECE * PIECES && BLOCK_KV == PIECE * PIECES_PER_BLOCK);
static_assert(THREADS == 128 * (TEAMS * GROUPS + 1), "a warpgroup for every 64 queries and one for the copies");

using QTile = SwizzledTile<GROUP_ROWS, D>;
using KTile = SwizzledTile<STEP_KV, D>;
using VTile = SwizzledTile<STEP_KV, D_V>;
static_assert(D_V <= D, "values come into the slots of keys");

// Shared memory of a team, from a multiple of 1024 on: tiles, then rows on their way out, then barriers, then what the
// copying warp tells the others.
constexpr unsigned TEAM_BYTES = SMEM_BYTES / 1024 / TEAMS * 1024;
constexpr unsigned KV_TILES = GROUPS * QTile::BYTES;
// Weights of the means in a slot, for as many slots as there may be.
constexpr unsigned WEIGHTS_BYTES = TAIL == TAIL_ROW ? 4 * STEP_KV : 0;
constexpr int MOST_STAGES = D > 192 ? 5 : 8;
// The value that every row of a tile begins with.
constexpr unsigned VALUE_BYTES = TAIL == TAIL_BLOCK ? 4 * D_V : 0;
using Room = RingAndRows<TEAM_BYTES - 1024 - MOST_STAGES * WEIGHTS_BYTES - VALUE_BYTES, KV_TILES, KTile::BYTES, 4 * GROUPS, D_V / 8>;
constexpr int STAGES = Room::SLOTS;
constexpr unsigned WEIGHTS = Room::END;
constexpr unsigned VALUE = WEIGHTS + STAGES * WEIGHTS_BYTES;
constexpr unsigned BARRIERS = VALUE + VALUE_BYTES;
constexpr int TILE_NOTES = TAIL == TAIL_BLOCK ? 4 : 3;
constexpr unsigned NOTES = BARRIERS + (2 * STAGES + 2) * Barrier::BYTES;
static_assert(STAGES >= 2, "a step's values are in the ring together with the next one's keys");
static_assert(NOTES + 4 * (STAGES * PIECES + TILE_NOTES) <= TEAM_BYTES && VALUE % 16 == 0);
static_assert(TAIL == TAIL_NONE || !HAS_SCORE_MOD, "what a score function makes of a mean is not defined");
static_assert(PIECE == TAIL_PIECE && (TAIL != TAIL_ROW || STAGES <= MOST_STAGES));

// Registers are handed out anew among the warpgroups: a product's accumulators want more than the copies.
constexpr int COPY_REGISTERS = GROUPS == 1 && CTAS == 1 ? 0 : 24;
constexpr int COMPUTE_REGISTERS = TEAMS == 2 ? 112 : GROUPS == 1 ? 232 : 240;

using Scores = float[STEP_KV / 8][4];
using Weights = unsigned[STEP_KV / 16][4];
using Output = float[D_V / 8][4];
using FirstKeys = int[PIECES];  // of a step's pieces; only a warp's first lane knows them
using Place = RingPlace<STAGES>;

/// A computing thread's place in its team.
__device__ __forceinline__ unsigned team_place() {
    return TEAMS == 1 ? thread_place() : thread_place() % (128 * GROUPS);
}

<% include "forward/sm90_copies.cuh" %>
<% include "forward/sm90_softmax.cuh" %>

/// Calls `change(score, row, key)` for each score of this lane in piece `piece`, row and key counted from the tile's and the
/// piece's first.
template <typename Change>
__device__ __forceinline__ void each_score(Scores& scores, int piece, Change change) {
    const int lane = thread_place() % 32, first_row = team_place() / 32 * 16;
#pragma unroll
    for (int n = 0; n < PIECE / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            change(scores[piece * (PIECE / 8) + n][i], first_row + lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2);
}

<% if constant.TAIL == constant.TAIL_ROW %>/// Adds the weights of means to their scores, in piece `piece`. Who has no weight takes no part, whatever the score is. In assembly, for
/// the compiler would have many weights in registers at once, of which two teams have few.
__device__ __forceinline__ void weigh_scores(Scores& scores, int piece, unsigned weights, float scale) {
    const unsigned first = weights + 4 * piece * PIECE + thread_place() % 4 * 8;
    const float to_product = reciprocal_approx(fmaxf(fabsf(scale), 1e-30f));
#pragma unroll
    for (int n = 0; n < PIECE / 8; ++n) {
        float(&four)[4] = scores[piece * (PIECE / 8) + n];
        asm volatile(
            "{\n"
            ".reg .f32 left, right;\n"
            ".reg .pred no_left, no_right;\n"
            "ld.shared.v2.f32 {left, right}, [%4];\n"
            "setp.eq.f32 no_left, left, 0fFF800000;\n"
            "setp.eq.f32 no_right, right, 0fFF800000;\n"
            "fma.rn.f32 %0, left, %5, %0;\n"
            "fma.rn.f32 %1, right, %5, %1;\n"
            "fma.rn.f32 %2, left, %5, %2;\n"
            "fma.rn.f32 %3, right, %5, %3;\n"
            "selp.f32 %0, left, %0, no_left;\n"
            "selp.f32 %1, right, %1, no_right;\n"
            "selp.f32 %2, left, %2, no_left;\n"
            "selp.f32 %3, right, %3, no_right;\n"
            "}"
            : "+f"(four[0]), "+f"(four[1]), "+f"(four[2]), "+f"(four[3])
            : "r"(first + 32 * n), "f"(to_product)
            : "memory");
    }
}

<% endif %>/// Scores become what the softmax takes: modified, -inf where there is no key or the mask drops it.
__device__ __forceinline__ void finish_scores(const Params& p, const Functions& f, Scores& scores, FirstKeys& first_keys,
                                              int tile, int decided, [[maybe_unused]] unsigned weights) {
    const dim3 row = HAS_SCORE_MOD || HAS_MASK_MOD ? row_of(p, tile) : dim3();
    bool edge = false;
#pragma unroll
    for (int i = 0; i < PIECES; ++i) {
        edge |= first_keys[i] + PIECE > p.seq_kv;<% if constant.TAIL == constant.TAIL_ROW %>
        edge |= is_of_means(first_keys[i]);<% endif %>
    }
    edge = __any_sync(0xffffffffu, edge);
    if (HAS_SCORE_MOD || HAS_MASK_MOD || edge)
#pragma unroll
        for (int i = 0; i < PIECES; ++i) first_keys[i] = warp_uniform(first_keys[i]);
    if constexpr (HAS_SCORE_MOD) {
#pragma unroll
        for (int i = 0; i < PIECES; ++i)
            each_score(scores, i, [&](float& score, int query, int key) {
                score = f.score_mod(score * p.scale, row.z, row.y, row.x * BLOCK_Q + query, first_keys[i] + key);
            });
    } else if (p.scale < 0.0f) {
#pragma unroll
        for (int i = 0; i < PIECES; ++i) each_score(scores, i, [&](float& score, int, int) { score = -score; });
    }
    if (edge) {
<% if constant.TAIL == constant.TAIL_ROW %>#pragma unroll
        for (int i = 0; i < PIECES; ++i)
            if (is_of_means(first_keys[i])) weigh_scores(scores, i, weights, p.scale);
<% endif %>#pragma unroll
        for (int i = 0; i < PIECES; ++i)
            each_score(scores, i, [&](float& score, int, int key) {
                if (first_keys[i] + key >= p.seq_kv) score = -infinity();
            });
    }
    if constexpr (HAS_MASK_MOD) {
#pragma unroll
        for (int i = 0; i < PIECES; ++i)
            if (i < decided)
                each_score(scores, i, [&](float& score, int query, int key) {
                    if (!f.mask_mod(row.z, row.y, row.x * BLOCK_Q + query, first_keys[i] + key)) score = -infinity();
                });
    }
}

/// Divides by the sums and writes `out` and `lse`. `staging`: where this warp's rows wait for the copy engine.
__device__ __forceinline__ void write_rows(const Params& p, const TensorMap& map, unsigned staging, const Softmax& softmax,
                                           const Output& out, int tile) {
    const dim3 place = row_of(p, tile);
    const int lane = thread_place() % 32, first_row = place.x * BLOCK_Q + team_place() / 32 * 16;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first_row + half * 8 + lane / 4;
        const float sum = quad_sum(softmax.sum[half]);
        inverse[half] = sum == 0.0f ? 0.0f : reciprocal_approx(sum);
        if (lane % 4 == 0 && row < p.seq_q)
            p.lse[place.z * p.lse_stride[0] + place.y * p.lse_stride[1] + row] =
                sum == 0.0f ? -infinity() : (softmax.max[half] + log2_approx(sum)) * LN_2;
    }
    if constexpr (Room::HAS_ROWS) {
        store_rows<T>(out, inverse, staging, map, first_row, place.y, place.z);
    } else {
        write_sums<T>(reinterpret_cast<const float(&)[1][D_V / 8][4]>(out),
                      p.out + place.z * p.out_stride[0] + place.y * p.out_stride[1] + first_row * p.out_stride[2],
                      p.out_stride[2], p.seq_q - first_row, p.value_dim, [&](int, int half) { return inverse[half]; });
    }
}

<% if constant.TAIL == constant.TAIL_BLOCK %>/// The softmax of every row begins with the value that stands for what its query block drops.
__device__ __forceinline__ void begin_with_tail(Softmax& softmax, Output& out, float lse, unsigned value) {
    if (lse == -infinity()) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        softmax.max[half] = lse * LOG2_E;
        softmax.sum[half] = thread_place() % 4 == 0 ? 1.0f : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < D_V / 8; ++n) {
        float pair[2];
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                     : "=f"(pair[0]), "=f"(pair[1])
                     : "r"(value + 32 * n + thread_place() % 4 * 8)
                     : "memory");
#pragma unroll
        for (int i = 0; i < 4; ++i) out[n][i] = pair[i % 2];
    }
}

<% endif %>/// The work of a computing warpgroup.
__device__ __forceinline__ void compute_tiles(const Params& p, const Functions& f, const TensorMap& map, Shared shared,
                                              int team, int group) {
    const unsigned q_tile = shared.q_tile(group);
    const bool speaker = thread_place() % 32 == 0;
    // Warpgroups take turns at starting their products: one's softmax then runs under the other's products.
    constexpr bool IN_TURN = PING_PONG && GROUPS == 2;
    const NamedBarrier my_turn{1 + 2 * team + group, 256}, your_turn{2 + 2 * team - group, 256};
    if (IN_TURN && group == 1) your_turn.arrive();

    // Scores times this are exponents of two. The maxima are taken before the product, so it must be positive: scores
    // take the sign of a negative scale by themselves, and a zero scale becomes one too small to matter.
    const float to_exponent = HAS_SCORE_MOD ? LOG2_E : LOG2_E * fmaxf(fabsf(p.scale), 1e-30f);

    const auto start_scores = [&](Scores& scores, const Place& place) {
        // Through ordinary registers each product would wait for its descriptor.
        const unsigned k_tile = warp_uniform(shared.kv_tile(place));
#pragma unroll
        for (int k = 0; k < D / 16; ++k)
            Wgmma<T, STEP_KV>::multiply(scores, QTile::along_rows(q_tile, k), KTile::along_rows(k_tile, k), k > 0);
        wgmma_commit();
    };
    const auto start_values = [&](Output& out, const Weights& weights, const Place& place, bool add) {
        const unsigned v_tile = warp_uniform(shared.kv_tile(place));
#pragma unroll
        for (int k = 0; k < STEP_KV / 16; ++k)
            Wgmma<T, D_V>::multiply_down(out, weights[k], VTile::down_columns(v_tile, k), k > 0 || add);
        wgmma_commit();
    };
    // Notes are read by the lane alone that says when they may change.
    const auto read_note = [&](unsigned address) { return speaker ? load_shared(address) : 0; };
    const auto read_first_keys = [&](FirstKeys& first_keys, const Place& place) {
#pragma unroll
        for (int i = 0; i < PIECES; ++i) first_keys[i] = read_note(shared.first_keys(place.slot) + 4 * i);
    };
    const auto release = [&](Barrier barrier) {
        __syncwarp();  // no lane has anything of it under way
        if (speaker) barrier.arrive();
    };
    const auto pack = [&](Weights& weights, const Scores& scores) {
#pragma unroll
        for (int k = 0; k < STEP_KV / 16; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                weights[k][i] = Mma<T>::pack(scores[2 * k + i / 2][i % 2 * 2], scores[2 * k + i / 2][i % 2 * 2 + 1]);
    };

    Place place;
    unsigned q_parity = 0;
    while (true) {
        shared.q_full().wait(q_parity);
        q_parity ^= 1;
        const int tile = warp_uniform(read_note(shared.tile()));
        if (tile < 0) break;
        const int steps = warp_uniform(read_note(shared.tile() + 4));
        // Pieces from this step on that the mask function decides.
        int decided = warp_uniform(read_note(shared.tile() + 8));
        Scores scores;
        FirstKeys first_keys;
        Weights weights;
        Output out;
        Softmax softmax;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            softmax.max[half] = LOWEST;
            softmax.sum[half] = 0.0f;
        }
#pragma unroll
        for (int n = 0; n < D_V / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) out[n][i] = 0.0f;
<% if constant.TAIL == constant.TAIL_BLOCK %>        begin_with_tail(softmax, out, __int_as_float(warp_uniform(read_note(shared.tile() + 12))), shared.value());
<% endif %>        if (steps == 0) {
            release(shared.q_empty());
        } else {
            shared.full(place.slot).wait(place.parity);
            read_first_keys(first_keys, place);
            wgmma_fence();
            start_scores(scores, place);
            wgmma_wait<0>();
            hold(scores);
            finish_scores(p, f, scores, first_keys, tile, decided, shared.weights(place.slot));
            release(shared.empty(place.slot));
            if (steps == 1) release(shared.q_empty());
            place.advance();
            const bool raised = softmax.raise(scores, to_exponent);
            softmax.exponentiate(scores, to_exponent);
            if (TAIL == TAIL_BLOCK && raised) softmax.rescale(out);
            pack(weights, scores);
#pragma unroll 1
            for (int step = 1; step < steps; ++step) {
                const Place keys = place;
                place.advance();
                const Place values = place;
                place.advance();
                decided -= PIECES;
                shared.full(keys.slot).wait(keys.parity);
                read_first_keys(first_keys, keys);
                if (IN_TURN) my_turn.wait();
                hold(out);
                hold(scores);
                wgmma_fence();
                start_scores(scores, keys);
                shared.full(values.slot).wait(values.parity);
                wgmma_fence();
                start_values(out, weights, values, true);
                if (IN_TURN) your_turn.arrive();
                wgmma_wait<1>();
                hold(scores);
                finish_scores(p, f, scores, first_keys, tile, decided, shared.weights(keys.slot));
                release(shared.empty(keys.slot));
                if (step + 1 == steps) release(shared.q_empty());
                const bool raised = softmax.raise(scores, to_exponent);
                softmax.exponentiate(scores, to_exponent);
                wgmma_wait<0>();
                hold(out);
                hold(weights);
                release(shared.empty(values.slot));
                if (raised) softmax.rescale(out);
                pack(weights, scores);
            }
            shared.full(place.slot).wait(place.parity);
            hold(out);
            wgmma_fence();
            start_values(out, weights, place, true);
            wgmma_wait<0>();
            hold(out);
            release(shared.empty(place.slot));
            place.advance();
        }
        write_rows(p, map, shared.base + Room::ROWS + team_place() / 32 * Room::Rows::BYTES, softmax, out, tile);
    }
    if (Room::HAS_ROWS && speaker) wait_stores_read();
}

extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
TILEWRIGHT_KERNEL(const __grid_constant__ Params p, const __grid_constant__ Functions f,
                  const __grid_constant__ TensorMaps maps, const TileQueue queue) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const auto shared_of = [&](int team) { return Shared{shared_address(smem) + team * TEAM_BYTES}; };
    if (threadIdx.x < TEAMS) {
        const Shared shared = shared_of(threadIdx.x);
#pragma unroll
        for (int slot = 0; slot < STAGES; ++slot) {
            shared.full(slot).init(1);
            shared.empty(slot).init(4 * GROUPS);
        }
        shared.q_full().init(1);
        shared.q_empty().init(4 * GROUPS);
        publish_barriers();
    }
    __syncthreads();
    const int group = warp_uniform(threadIdx.x / 128);
    if (group == TEAMS * GROUPS) {
        if constexpr (COPY_REGISTERS) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPY_REGISTERS));
        const int team = warp_uniform(threadIdx.x / 32) - 4 * TEAMS * GROUPS;
        if (team < TEAMS) copy_tiles(p, maps, queue, shared_of(team), team);
    } else {
        if constexpr (COPY_REGISTERS) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COMPUTE_REGISTERS));
        const int team = TEAMS == 1 ? 0 : group / GROUPS;
        compute_tiles(p, f, maps.out, shared_of(team), team, group - team * GROUPS);
    }
}
