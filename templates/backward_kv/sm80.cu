// Block-sparse attention, backward by keys, for the cp.async / ldmatrix / mma.sync family (sm_80 and every later
// architecture).
//
// One thread block takes TILE_KV keys of one key head; the queries of the lists pass by, STEP_Q at a time, those of one query
// head after another. Each warp owns TILE_KV / WARPS keys from the transposed scores to the sums: what is made of them stays
// in its registers as the operand of the next product, and the warps meet only to trade tiles of q and d_out.
<% include "lib/thread.cuh" %>
<% include "lib/async_copy.cuh" %>
<% include "lib/tile.cuh" %>
<% include "lib/mma.cuh" %>
<% include "lib/math.cuh" %>
<% include "lib/quad.cuh" %>
<% include "lib/given_order.cuh" %>
<% include "lib/query_blocks.cuh" %>
<% include "lib/tile_products.cuh" %>
<% include "lib/write_sums.cuh" %>
<% include "lib/add_mean.cuh" %>
<% if constant.TAIL == constant.TAIL_ROW %><% include "lib/part_of_queries.cuh" %>
<% endif %>
constexpr int WARP_KEYS = TILE_KV / WARPS;
constexpr int M_TILES = WARP_KEYS / 16;
constexpr int Q_TILES = STEP_Q / 16;
constexpr int HALVES = D > 128 ? 2 : 1;    // a block sums all columns of dk and dv, or half of both: no more fit into registers
constexpr int SUM_COLS = D / HALVES, VALUE_COLS = D_V / HALVES;
constexpr int TILES_PER_BLOCK = BLOCK_KV / TILE_KV;
constexpr int STEPS_PER_BLOCK = BLOCK_Q / STEP_Q;

static_assert(TILE_KV == 16 * M_TILES * WARPS && THREADS == 32 * WARPS, "a warp takes whole 16-row tiles");
static_assert(BLOCK_KV == TILE_KV * TILES_PER_BLOCK && BLOCK_Q == STEP_Q * STEPS_PER_BLOCK);
static_assert(STEP_Q <= THREADS, "a thread brings the statistics of one query");

// Up to 255 registers a thread: 256 threads share a multiprocessor, which hide each other's waits.
constexpr int MIN_BLOCKS = 256 / THREADS;

using Layout = Tile<D>;
using ValueLayout = Tile<D_V>;
using Copy = TileCopy<T, D, THREADS>;
using ValueCopy = TileCopy<T, D_V, THREADS>;
using Steps = <% if constant.TAIL == constant.TAIL_ROW %>PartOfQueries<% else %>QueryBlocks<% endif %><STEP_Q, STEPS_PER_BLOCK>;
static_assert(TAIL == TAIL_NONE || !HAS_SCORE_MOD, "what a score function makes of a mean is not defined");
using Products = float[M_TILES][2 * Q_TILES][4];

// Shared memory: K, V, two slots of q and d_out, and of what is known of each query.
constexpr unsigned K_BYTES = TILE_KV * Layout::ROW_BYTES;
constexpr unsigned Q_BYTES = STEP_Q * Layout::ROW_BYTES;
constexpr unsigned SLOT_BYTES = Q_BYTES + STEP_Q * ValueLayout::ROW_BYTES;
constexpr unsigned SLOTS = K_BYTES + TILE_KV * ValueLayout::ROW_BYTES;
constexpr unsigned STATISTICS = SLOTS + 2 * SLOT_BYTES;

/// What is known of a query: lse in base-2 exponent units, and delta. A query that attends to nothing, or does not exist, has
/// an lse of +inf: its weights become 0.
struct Statistics {
    float lse, delta;
};

__device__ __forceinline__ Statistics read_statistics(const Params& p, const Steps::Step& step, int batch, bool& empty) {
    const int query = step.first + static_cast<int>(thread_place());
    empty = false;
    if (thread_place() >= STEP_Q || query >= p.seq_q) return {infinity(), 0.0f};
    const float lse = __ldg(p.lse + batch * p.lse_stride[0] + step.head * p.lse_stride[1] + query);
    const float delta = __ldg(p.delta + batch * p.delta_stride[0] + step.head * p.delta_stride[1] + query);
    empty = lse == -infinity();
    return {empty ? infinity() : lse * LOG2_E, delta};
}

/// Rows of queries that attend to nothing become 0, whatever they hold: 0 · NaN must not reach their keys.
__device__ __forceinline__ void clear_empty_rows(unsigned char* slot, const Statistics* statistics) {
    constexpr int CHUNKS = D / 8;
    for (int i = thread_place(); i < STEP_Q * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        if (statistics[row].lse != infinity()) continue;
        *reinterpret_cast<uint4*>(slot + Layout::offset(row, chunk)) = make_uint4(0, 0, 0, 0);
        if (chunk < D_V / 8)
            *reinterpret_cast<uint4*>(slot + Q_BYTES + ValueLayout::offset(row, chunk)) = make_uint4(0, 0, 0, 0);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
TILEWRIGHT_KERNEL(const __grid_constant__ Params p, const __grid_constant__ Functions f) {
    extern __shared__ __align__(128) unsigned char smem[];
    const int kv_head = blockIdx.y, batch = blockIdx.z;
    const int part = blockIdx.x % (TILES_PER_BLOCK * HALVES), half = part % HALVES;
    const int kv_block = key_block_at(p, blockIdx.x / (TILES_PER_BLOCK * HALVES), kv_head, batch);
    const int first_key = kv_block * BLOCK_KV + part / HALVES * TILE_KV;
    if (first_key >= p.seq_kv) return;

    const unsigned k_tile = shared_address(smem);
    const int first_row_of_keys = TAIL == TAIL_ROW ? first_key % p.keys : first_key;
    Copy{p.k + batch * p.k_stride[0] + kv_head * p.k_stride[1], p.k_stride[2], p.head_dim}
        .template start<TILE_KV>(k_tile, first_row_of_keys, p.keys);
    ValueCopy{p.v + batch * p.v_stride[0] + kv_head * p.v_stride[1], p.v_stride[2], p.value_dim}
        .template start<TILE_KV>(k_tile + K_BYTES, first_row_of_keys, p.keys);
    Statistics* const statistics = reinterpret_cast<Statistics*>(smem + STATISTICS);  // [2][STEP_Q]

    Steps steps(p, kv_block, kv_head, batch);
    const auto start_queries = [&](const typename Steps::Step& step, unsigned slot) {
        const unsigned to = k_tile + SLOTS + slot * SLOT_BYTES;
        Copy{p.q + batch * p.q_stride[0] + step.head * p.q_stride[1], p.q_stride[2], p.head_dim}
            .template start<STEP_Q>(to, step.first, p.seq_q);
        ValueCopy{p.d_out + batch * p.d_out_stride[0] + step.head * p.d_out_stride[1], p.d_out_stride[2], p.value_dim}
            .template start<STEP_Q>(to + Q_BYTES, step.first, p.seq_q);
    };

    float dk[M_TILES][SUM_COLS / 8][4], dv[M_TILES][VALUE_COLS / 8][4];
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int n = 0; n < SUM_COLS / 8; ++n) dk[m][n][i] = 0.0f;
#pragma unroll
            for (int n = 0; n < VALUE_COLS / 8; ++n) dv[m][n][i] = 0.0f;
        }

    typename Steps::Step step = steps.next(p);
    bool empty = false;  // whether this thread's query of the slot that is next attends to nothing
    if (step.head >= 0) {
        start_queries(step, 0);
        const Statistics first = read_statistics(p, step, batch, empty);
        if (thread_place() < STEP_Q) statistics[thread_place()] = first;
    }
    copy_commit();

    unsigned slot = 0;
    while (step.head >= 0) {
        copy_wait<0>();
        // This step's tiles are visible, and no warp still reads the last step's.
        const bool any_empty = __syncthreads_or(empty);
        const typename Steps::Step following = steps.next(p);
        Statistics of_following{infinity(), 0.0f};
        empty = false;
        if (following.head >= 0) {
            start_queries(following, slot ^ 1);
            of_following = read_statistics(p, following, batch, empty);
        }
        copy_commit();
        if (any_empty) {
            clear_empty_rows(smem + SLOTS + slot * SLOT_BYTES, statistics + slot * STEP_Q);
            __syncthreads();
        }

        const unsigned q_tile = k_tile + SLOTS + slot * SLOT_BYTES, lane = thread_place() % 32;
        const unsigned warp_key = thread_place() / 32 * WARP_KEYS;
        Products weights, gradients;
        multiply_tiles<T, D, M_TILES, Q_TILES>(weights, Layout::lane_by_columns(k_tile, warp_key, lane),
                                               Layout::lane_by_rows(q_tile, 0, lane));
        // lse and delta of this lane's columns, two a piece.
        const auto of_columns = [&](int n) {
            return reinterpret_cast<const float4*>(statistics + slot * STEP_Q)[n * 4 + lane % 4];
        };
        Products scores;  // before the score function, where there is one
        if constexpr (HAS_SCORE_MOD) {
            each_product(weights, scores, [&](float& weight, float& score, int key, int query) {
                score = weight * p.scale;
                weight = f.score_mod(score, batch, step.head, step.first + query, first_key + warp_key + key);
            });
        }
        // Scores become exponents of two, and only then -inf: it would not survive a scale of 0 or less.
        const float to_exponent = HAS_SCORE_MOD ? LOG2_E : LOG2_E * p.scale;
#pragma unroll
        for (int n = 0; n < 2 * Q_TILES; ++n) {
            const float4 columns = of_columns(n);
#pragma unroll
            for (int m = 0; m < M_TILES; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    weights[m][n][i] = fmaf(weights[m][n][i], to_exponent, i % 2 ? -columns.z : -columns.x);
        }
<% if constant.TAIL == constant.TAIL_ROW %>        {
            // Who has no weight takes no part, whatever the score is.
            const float* of_means = weights_of_means(p, step.first / BLOCK_Q, step.head, batch) + first_row_of_keys + warp_key;
            each_product(weights, scores, [&](float& weight, float&, int mean, int) {
                const float of_mean = __ldg(of_means + mean);
                weight = of_mean == -infinity() ? of_mean : fmaf(of_mean, LOG2_E, weight);
            });
        }
<% endif %>        if (HAS_MASK_MOD && step.decided) {
            each_product(weights, scores, [&](float& weight, float&, int key, int query) {
                if (!f.mask_mod(batch, step.head, step.first + query, first_key + warp_key + key)) weight = -infinity();
            });
        }
        each_product(weights, scores, [](float& weight, float&, int, int) { weight = exp2_approx(weight); });
        const unsigned d_out_tile = q_tile + Q_BYTES;
        accumulate_tiles<T, D_V, VALUE_COLS, M_TILES, Q_TILES>(
            dv, weights, ValueLayout::lane_by_columns(d_out_tile, 0, lane) + 2 * half * VALUE_COLS);
        multiply_tiles<T, D_V, M_TILES, Q_TILES>(gradients, ValueLayout::lane_by_columns(k_tile + K_BYTES, warp_key, lane),
                                                ValueLayout::lane_by_rows(d_out_tile, 0, lane));
#pragma unroll
        for (int n = 0; n < 2 * Q_TILES; ++n) {
            const float4 columns = of_columns(n);
#pragma unroll
            for (int m = 0; m < M_TILES; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    gradients[m][n][i] = weights[m][n][i] * (gradients[m][n][i] - (i % 2 ? columns.w : columns.y));
        }
        // What has no weight has no gradient, be its d_out · v or its derivative what it may.
        if constexpr (HAS_SCORE_MOD) {
            each_product(gradients, scores, [&](float& gradient, float& score, int key, int query) {
                gradient *= f.score_mod.gradient(score, batch, step.head, step.first + query, first_key + warp_key + key);
            });
        }
        if constexpr (HAS_SCORE_MOD || HAS_MASK_MOD) {
            each_product(gradients, weights, [&](float& gradient, float& weight, int, int) {
                if (weight == 0.0f) gradient = 0.0f;
            });
        }
        accumulate_tiles<T, D, SUM_COLS, M_TILES, Q_TILES>(
            dk, gradients, Layout::lane_by_columns(q_tile, 0, lane) + 2 * half * SUM_COLS);

        if (thread_place() < STEP_Q) statistics[(slot ^ 1) * STEP_Q + thread_place()] = of_following;
        step = following;
        slot ^= 1;
    }
    copy_wait<0>();

    const int first_row = first_key + thread_place() / 32 * WARP_KEYS, rows = p.seq_kv - first_row;
    const auto begin = [&](T* tensor, const long long* stride) {
        return tensor + batch * stride[0] + kv_head * stride[1] + first_row * stride[2];
    };
    float by = p.scale;
    if constexpr (TAIL == TAIL_BLOCK) {
        const auto mean_of = [&](const float* mean, const long long* stride) {
            return mean + batch * stride[0] + kv_head * stride[1] + kv_block * stride[2];
        };
        if (p.dk_mean != nullptr && p.dv_mean != nullptr) {
            add_mean(dk, by, mean_of(p.dk_mean, p.dk_mean_stride) + half * SUM_COLS, p.head_dim - half * SUM_COLS);
            add_mean(dv, 1.0f, mean_of(p.dv_mean, p.dv_mean_stride) + half * VALUE_COLS, p.value_dim - half * VALUE_COLS);
            by = 1.0f;
        }
    }
    write_sums(dk, begin(p.dk, p.dk_stride) + half * SUM_COLS, p.dk_stride[2], rows, p.head_dim - half * SUM_COLS,
               [&](int, int) { return by; });
    write_sums(dv, begin(p.dv, p.dv_stride) + half * VALUE_COLS, p.dv_stride[2], rows, p.value_dim - half * VALUE_COLS,
               [](int, int) { return 1.0f; });
}
