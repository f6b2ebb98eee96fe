// Block-sparse attention, backward by queries, for the cp.async / ldmatrix / mma.sync family (sm_80 and every later
// architecture).
//
// One thread block takes TILE_Q queries of one head; the keys and values of the row's lists pass by, STEP_KV at a time. Each
// warp owns TILE_Q / WARPS queries from the scores to the sums, so the warps meet only to trade tiles of k and v.
<% include "lib/thread.cuh" %>
<% include "lib/async_copy.cuh" %>
<% include "lib/tile.cuh" %>
<% include "lib/mma.cuh" %>
<% include "lib/math.cuh" %>
<% include "lib/quad.cuh" %>
<% include "lib/key_blocks.cuh" %>
<% include "lib/tile_products.cuh" %>
<% include "lib/write_sums.cuh" %>
<% include "lib/add_mean.cuh" %>
<% if constant.TAIL == constant.TAIL_ROW %><% include "lib/tail_pieces.cuh" %>
<% endif %>
constexpr int WARP_ROWS = TILE_Q / WARPS;
constexpr int M_TILES = WARP_ROWS / 16;
constexpr int KEY_TILES = STEP_KV / 16;
constexpr int TILES_PER_BLOCK = BLOCK_Q / TILE_Q;
constexpr int STEPS_PER_BLOCK = BLOCK_KV / STEP_KV;

static_assert(TILE_Q == 16 * M_TILES * WARPS && THREADS == 32 * WARPS, "a warp takes whole 16-row tiles");
static_assert(BLOCK_Q == TILE_Q * TILES_PER_BLOCK && BLOCK_KV == STEP_KV * STEPS_PER_BLOCK);

static_assert(TAIL == TAIL_NONE || !HAS_SCORE_MOD, "what a score function makes of a mean is not defined");

// Up to 255 registers a thread: 256 threads share a multiprocessor, which hide each other's waits.
constexpr int MIN_BLOCKS = 256 / THREADS;

using Layout = Tile<D>;
using ValueLayout = Tile<D_V>;
using Copy = TileCopy<T, D, THREADS>;
using ValueCopy = TileCopy<T, D_V, THREADS>;
using Products = float[M_TILES][2 * KEY_TILES][4];
using Sums = float[M_TILES][D / 8][4];

// Shared memory: q, d_out, and two slots of k and v.
constexpr unsigned Q_BYTES = TILE_Q * Layout::ROW_BYTES;
constexpr unsigned K_BYTES = STEP_KV * Layout::ROW_BYTES;
constexpr unsigned SLOT_BYTES = K_BYTES + STEP_KV * ValueLayout::ROW_BYTES;
constexpr unsigned SLOTS = Q_BYTES + TILE_Q * ValueLayout::ROW_BYTES;

/// A query's d_out times its out, of which each lane of a quad reads 16 bytes of 64; 0 where there is no such query.
__device__ __forceinline__ float product_of_rows(const Params& p, dim3 row, int query) {
    float sum = 0.0f;
    if (query < p.seq_q) {
        const auto row_of = [&](const T* tensor, const long long* stride) {
            return tensor + row.z * stride[0] + row.y * stride[1] + query * stride[2];
        };
        const T *out = row_of(p.out, p.out_stride), *d_out = row_of(p.d_out, p.d_out_stride);
#pragma unroll
        for (int i = 0; i < D_V / 32; ++i) {
            const int column = i * 32 + thread_place() % 4 * 8;
            if (column >= p.value_dim) break;
            const uint4 a = __ldg(reinterpret_cast<const uint4*>(out + column));
            const uint4 b = __ldg(reinterpret_cast<const uint4*>(d_out + column));
            const T *x = reinterpret_cast<const T*>(&a), *y = reinterpret_cast<const T*>(&b);
#pragma unroll
            for (int j = 0; j < 8; ++j) sum = fmaf(static_cast<float>(x[j]), static_cast<float>(y[j]), sum);
        }
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
TILEWRIGHT_KERNEL(const __grid_constant__ Params p, const __grid_constant__ Functions f) {
    extern __shared__ __align__(128) unsigned char smem[];
    const dim3 row(blockIdx.x / TILES_PER_BLOCK, blockIdx.y, blockIdx.z);  // q_block, head, batch
    const int first_query = row.x * BLOCK_Q + blockIdx.x % TILES_PER_BLOCK * TILE_Q;
    const int kv_head = row.y / (p.heads / p.kv_heads);
    if (first_query >= p.seq_q) return;

    const unsigned q_tile = shared_address(smem);
    Copy{p.q + row.z * p.q_stride[0] + row.y * p.q_stride[1], p.q_stride[2], p.head_dim}
        .template start<TILE_Q>(q_tile, first_query, p.seq_q);
    ValueCopy{p.d_out + row.z * p.d_out_stride[0] + row.y * p.d_out_stride[1], p.d_out_stride[2], p.value_dim}
        .template start<TILE_Q>(q_tile + Q_BYTES, first_query, p.seq_q);
    const auto start_keys = [&](int first, unsigned slot) {
        const unsigned to = q_tile + SLOTS + slot * SLOT_BYTES;
<% if constant.TAIL == constant.TAIL_ROW %>        if (is_of_means(first)) {
            first = first_mean_of(first);
            Copy{p.tail_k + row.z * p.tail_k_stride[0] + kv_head * p.tail_k_stride[1], p.tail_k_stride[2], p.head_dim}
                .template start<STEP_KV>(to, first, p.tail_keys);
            ValueCopy{p.tail_v + row.z * p.tail_v_stride[0] + kv_head * p.tail_v_stride[1], p.tail_v_stride[2], p.value_dim}
                .template start<STEP_KV>(to + K_BYTES, first, p.tail_keys);
            return;
        }
<% endif %>        Copy{p.k + row.z * p.k_stride[0] + kv_head * p.k_stride[1], p.k_stride[2], p.head_dim}
            .template start<STEP_KV>(to, first, p.seq_kv);
        ValueCopy{p.v + row.z * p.v_stride[0] + kv_head * p.v_stride[1], p.v_stride[2], p.value_dim}
            .template start<STEP_KV>(to + K_BYTES, first, p.seq_kv);
    };

    // What is known of this quad's rows: lse in base-2 exponent units, and delta. A query that attends to nothing, or does
    // not exist, has an lse of +inf: its weights become 0.
    float lse[M_TILES][2], delta[M_TILES][2];
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int query = first_query + thread_place() / 32 * WARP_ROWS + m * 16 + half * 8 + thread_place() % 32 / 4;
            const float product = product_of_rows(p, row, query);
            const auto of_query = [&](auto* tensor, const long long* stride) {
                return tensor + row.z * stride[0] + row.y * stride[1] + query;
            };
            lse[m][half] = infinity();
            delta[m][half] = 0.0f;
            if (query >= p.seq_q) continue;
            const float found = __ldg(of_query(p.lse, p.lse_stride));
            if (found != -infinity()) {
                lse[m][half] = found * LOG2_E;
                delta[m][half] = product - (p.d_lse ? __ldg(of_query(p.d_lse, p.d_lse_stride)) : 0.0f);
            }
            if (thread_place() % 4 == 0) *of_query(p.delta, p.delta_stride) = delta[m][half];
        }

    Sums dq;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) dq[m][n][i] = 0.0f;

    const KeyBlocks::Counts counts = KeyBlocks::counts(p, row);
    int steps = counts.all * STEPS_PER_BLOCK;
<% if constant.TAIL == constant.TAIL_ROW %>    const int steps_of_keys = steps;
    constexpr int STEPS_PER_PIECE = TAIL_PIECE / STEP_KV;
    auto means = TailPieces<STEP_KV>::of(p, row);
    int first_mean = -1;
    steps += means.total() * STEPS_PER_PIECE;
<% endif %>    KeyBlocks blocks;
    // Must be asked for each step in turn.
    const auto first_key_of = [&](int step) {
<% if constant.TAIL == constant.TAIL_ROW %>        if (step >= steps_of_keys) {
            if (step >= steps) return p.kv_blocks * BLOCK_KV;
            const int within = (step - steps_of_keys) % STEPS_PER_PIECE;
            if (within == 0) first_mean = means.next();
            return as_first_key(first_mean + within * STEP_KV);
        }
<% endif %>        if (step % (32 * STEPS_PER_BLOCK) == 0) blocks.move_window(p, counts, step / STEPS_PER_BLOCK, [&] { return row; });
        return blocks.at(step / STEPS_PER_BLOCK) * BLOCK_KV + step % STEPS_PER_BLOCK * STEP_KV;
    };
    int first_key = first_key_of(0);
    if (steps > 0) start_keys(first_key, 0);
    copy_commit();

    unsigned slot = 0;
    for (int step = 0; step < steps; ++step) {
        copy_wait<0>();
        __syncthreads();  // this step's tiles are visible, and no warp still reads the last step's
        const int following = first_key_of(step + 1);
        if (step + 1 < steps) start_keys(following, slot ^ 1);
        copy_commit();

        const unsigned k_tile = q_tile + SLOTS + slot * SLOT_BYTES, lane = thread_place() % 32;
        const unsigned warp_row = thread_place() / 32 * WARP_ROWS;
        Products weights, gradients;
        multiply_tiles<T, D, M_TILES, KEY_TILES>(weights, Layout::lane_by_columns(q_tile, warp_row, lane),
                                                 Layout::lane_by_rows(k_tile, 0, lane));
        multiply_tiles<T, D_V, M_TILES, KEY_TILES>(gradients, ValueLayout::lane_by_columns(q_tile + Q_BYTES, warp_row, lane),
                                                  ValueLayout::lane_by_rows(k_tile + K_BYTES, 0, lane));
        // The derivative of the score function, where there is one.
        Products slopes;
        if constexpr (HAS_SCORE_MOD) {
            each_product(weights, slopes, [&](float& weight, float& slope, int query, int key) {
                const float score = weight * p.scale;
                const int q = first_query + warp_row + query, kv = first_key + key;
                weight = f.score_mod(score, row.z, row.y, q, kv);
                slope = f.score_mod.gradient(score, row.z, row.y, q, kv);
            });
        }
        // Scores become exponents of two, and only then -inf: it would not survive a scale of 0 or less.
        const float to_exponent = HAS_SCORE_MOD ? LOG2_E : LOG2_E * p.scale;
#pragma unroll
        for (int m = 0; m < M_TILES; ++m)
#pragma unroll
            for (int n = 0; n < 2 * KEY_TILES; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) weights[m][n][i] = fmaf(weights[m][n][i], to_exponent, -lse[m][i / 2]);
<% if constant.TAIL == constant.TAIL_ROW %>        if (is_of_means(first_key)) {
            const float* of_means = tail_weights_of(p, row) + first_mean_of(first_key);
            each_product(weights, slopes, [&](float& weight, float&, int, int mean) {
                weight = weighted_exponent(weight, __ldg(of_means + mean));
            });
        }
<% endif %>        // A key past the end has a score of 0, whose power of 2 can be infinite.
        if (first_key + STEP_KV > p.seq_kv)
            each_product(weights, slopes, [&](float& weight, float&, int, int key) {
                if (first_key + key >= p.seq_kv) weight = -infinity();
            });
        if (HAS_MASK_MOD && step < counts.partial * STEPS_PER_BLOCK)
            each_product(weights, slopes, [&](float& weight, float&, int query, int key) {
                if (!f.mask_mod(row.z, row.y, first_query + warp_row + query, first_key + key)) weight = -infinity();
            });
#pragma unroll
        for (int m = 0; m < M_TILES; ++m)
#pragma unroll
            for (int n = 0; n < 2 * KEY_TILES; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float weight = exp2_approx(weights[m][n][i]);
                    float gradient = weight * (gradients[m][n][i] - delta[m][i / 2]);
                    if constexpr (HAS_SCORE_MOD) gradient *= slopes[m][n][i];
                    // What has no weight has no gradient, be its d_out · v or its derivative what it may.
                    if constexpr (HAS_SCORE_MOD || HAS_MASK_MOD || TAIL == TAIL_ROW) gradient = weight == 0.0f ? 0.0f : gradient;
                    gradients[m][n][i] = gradient;
                }
        accumulate_tiles<T, D, D, M_TILES, KEY_TILES>(dq, gradients, Layout::lane_by_columns(k_tile, 0, lane));
        first_key = following;
        slot ^= 1;
    }
    copy_wait<0>();

    const int first_row = first_query + thread_place() / 32 * WARP_ROWS;
    float by = p.scale;
    if constexpr (TAIL == TAIL_BLOCK) {
        if (p.dq_mean != nullptr) {
            add_mean(dq, by, p.dq_mean + row.z * p.dq_mean_stride[0] + row.y * p.dq_mean_stride[1] + row.x * p.dq_mean_stride[2],
                     p.head_dim);
            by = 1.0f;
        }
    }
    write_sums(dq, p.dq + row.z * p.dq_stride[0] + row.y * p.dq_stride[1] + first_row * p.dq_stride[2], p.dq_stride[2],
               p.seq_q - first_row, p.head_dim, [&](int, int) { return by; });
}
