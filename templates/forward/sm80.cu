// Block-sparse attention, forward, for the cp.async / ldmatrix / mma.sync family (sm_80 and every later architecture).
//
// One thread block takes BLOCK_Q queries of one head and walks that row's key blocks in steps of STEP_KV keys. Each
// warp owns BLOCK_Q / WARPS rows from the scores to the output, so the warps meet only to trade K and V tiles.
<% include "lib/thread.cuh" %>
<% include "lib/async_copy.cuh" %>
<% include "lib/tile.cuh" %>
<% include "lib/mma.cuh" %>
<% include "lib/math.cuh" %>
<% include "lib/quad.cuh" %>
<% include "lib/key_blocks.cuh" %>
<% if constant.TAIL == constant.TAIL_ROW %><% include "lib/tail_pieces.cuh" %>
<% endif %>
constexpr int WARP_ROWS = BLOCK_Q / WARPS;
constexpr int M_TILES = WARP_ROWS / 16;       // 16-row pieces of a warp
constexpr int KEY_TILES = STEP_KV / 16;       // 16-key pieces of a step
constexpr int D_TILES = D / 16;               // 16-column pieces of queries and keys
constexpr int VALUE_TILES = D_V / 16;             // of values
constexpr int STEPS_PER_BLOCK = BLOCK_KV / STEP_KV;
constexpr int AHEAD = STAGES == 1 ? 1 : STAGES - 1;  // steps between a tile's copy and its use

static_assert(WARP_ROWS == 16 * M_TILES && M_TILES >= 1, "a warp takes whole 16-row tiles");
static_assert(BLOCK_KV == STEP_KV * STEPS_PER_BLOCK && STEP_KV % 16 == 0, "a block is a whole number of steps");
static_assert(THREADS == 32 * WARPS);
static_assert(TAIL == TAIL_NONE || !HAS_SCORE_MOD, "what a score function makes of a mean is not defined");

// Up to 255 registers a thread: 256 threads share a multiprocessor, which hide each other's waits.
constexpr int MIN_BLOCKS = 256 / THREADS;

using Layout = Tile<D>;
using ValueLayout = Tile<D_V>;
using Copy = TileCopy<T, D, THREADS>;
using ValueCopy = TileCopy<T, D_V, THREADS>;
static_assert(D_V <= D, "the output leaves through the queries' rows");
static_assert(Copy::ROWS_PER_PASS == ValueCopy::ROWS_PER_PASS);
constexpr unsigned Q_BYTES = BLOCK_Q * Layout::ROW_BYTES;
constexpr unsigned K_BYTES = STEP_KV * Layout::ROW_BYTES;
constexpr unsigned PAIR_BYTES = K_BYTES + STEP_KV * ValueLayout::ROW_BYTES;  // keys, then values

// Queries stay in registers where they fit beside the output and the scores; else every step reads them again.
constexpr int Q_REGISTER_LIMIT = TAIL == TAIL_ROW ? 150 : 168;
constexpr bool Q_IN_REGISTERS = 4 * M_TILES * (D_TILES + 2 * VALUE_TILES + 2 * KEY_TILES) <= Q_REGISTER_LIMIT;

// The running maximum may lag behind the true one by this much (in powers of two) before the output is rescaled:
// exponentials then reach 256 at most, and after the first step a rescale is rare.
constexpr float MAX_LAG = 8.0f;

// The maximum of a row that has met no key: finite, so that a masked score's exponential is 0 and never NaN.
constexpr float LOWEST = -3.402823466e38f;

/// What a warp carries from step to step.
struct WarpState {
    float out[M_TILES][2 * VALUE_TILES][4];
    float max[M_TILES][2];  // base-2 exponent units
    float sum[M_TILES][2];  // this lane's share
};

struct Queries {
    unsigned held[Q_IN_REGISTERS ? M_TILES : 1][Q_IN_REGISTERS ? D_TILES : 1][4];
    unsigned address;  // of this lane in the warp's first 16 rows

    __device__ __forceinline__ void load() {
        if constexpr (Q_IN_REGISTERS) {
#pragma unroll
            for (int m = 0; m < M_TILES; ++m)
#pragma unroll
                for (int d = 0; d < D_TILES; ++d) read(held[m][d], m, d);
        }
    }
    __device__ __forceinline__ void get(unsigned (&a)[4], int m, int d) const {
        if constexpr (Q_IN_REGISTERS) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] = held[m][d][i];
        } else {
            read(a, m, d);
        }
    }

   private:
    __device__ __forceinline__ void read(unsigned (&a)[4], int m, int d) const {
        load_matrices(a, Layout::right(address, d) + m * 16 * Layout::ROW_BYTES);
    }
};

using Scores = float[M_TILES][2 * KEY_TILES][4];

/// scores = Q Kᵀ. `k_lane` is this lane's ldmatrix address in the K tile; `between(d)` runs after each 16 columns.
template <typename Between>
__device__ __forceinline__ void multiply_queries_keys(Scores& scores, const Queries& queries, unsigned k_lane,
                                                      Between between) {
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int n = 0; n < 2 * KEY_TILES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
#pragma unroll
    for (int d = 0; d < D_TILES; ++d) {
        unsigned a[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; ++m) queries.get(a[m], m, d);
#pragma unroll
        for (int n = 0; n < KEY_TILES; ++n) {
            unsigned b[4];
            load_matrices(b, Layout::right(k_lane, d) + n * 16 * Layout::ROW_BYTES);
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
                Mma<T>::add(scores[m][2 * n], a[m], b[0], b[1]);
                Mma<T>::add(scores[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
        between(d);
    }
}

/// Calls `change(score, row, key)` for each score of this lane, row and key counted from the block's and the step's first.
template <typename Change>
__device__ __forceinline__ void each_score(Scores& scores, Change change) {
    const int lane = thread_place() % 32, first_row = thread_place() / 32 * WARP_ROWS;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int n = 0; n < 2 * KEY_TILES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                change(scores[m][n][i], first_row + m * 16 + lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2);
}

/// Raises the running maxima to cover these scores and rescales what was summed so far, if any row of the warp needs it.
__device__ __forceinline__ void raise_maxima(WarpState& state, const Scores& scores, float to_exponent) {
    float top[M_TILES][2];  // of this lane's scores: enough to see that nothing lags
    bool lagging = false;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float row[2] = {scores[m][0][2 * half], scores[m][0][2 * half + 1]};
#pragma unroll
            for (int n = 1; n < 2 * KEY_TILES; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i) row[i] = fmaxf(row[i], scores[m][n][2 * half + i]);
            top[m][half] = fmaxf(row[0], row[1]);
            lagging |= fmaf(top[m][half], to_exponent, -state.max[m][half]) > MAX_LAG;
        }
    if (!__any_sync(0xffffffffu, lagging)) return;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float raised = fmaxf(state.max[m][half], quad_max(top[m][half]) * to_exponent);
            const float factor = exp2_approx(state.max[m][half] - raised);
            state.max[m][half] = raised;
            state.sum[m][half] *= factor;
#pragma unroll
            for (int n = 0; n < 2 * VALUE_TILES; ++n) {
                state.out[m][n][2 * half] *= factor;
                state.out[m][n][2 * half + 1] *= factor;
            }
        }
}

/// out += softmax(scores) V, 16 keys at a time, so that one piece's exponentials run under another's products.
__device__ __forceinline__ void accumulate_values(WarpState& state, Scores& scores, float to_exponent, unsigned v_lane) {
#pragma unroll
    for (int key = 0; key < KEY_TILES; ++key) {
        unsigned p[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; ++m)
#pragma unroll
            for (int part = 0; part < 4; ++part) {  // column half, then row half: the order of an A operand
                const int half = part % 2;
                const float* pair = &scores[m][2 * key + part / 2][2 * half];
                const float first = exp2_approx(fmaf(pair[0], to_exponent, -state.max[m][half]));
                const float second = exp2_approx(fmaf(pair[1], to_exponent, -state.max[m][half]));
                state.sum[m][half] += first + second;
                p[m][part] = Mma<T>::pack(first, second);
            }
#pragma unroll
        for (int d = 0; d < VALUE_TILES; ++d) {
            unsigned b[4];
            load_matrices_transposed(b, ValueLayout::right(v_lane, d) + key * 16 * ValueLayout::ROW_BYTES);
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
                Mma<T>::add(state.out[m][2 * d], p[m], b[0], b[1]);
                Mma<T>::add(state.out[m][2 * d + 1], p[m], b[2], b[3]);
            }
        }
    }
}

/// The softmax of every row begins with the value that stands for what its query block drops.
__device__ __forceinline__ void begin_with_tail(const Params& p, WarpState& state) {
    const dim3 place = block_place(p);
    const int lane = thread_place() % 32;
    if (p.tail_lse == nullptr || p.tail_out == nullptr) return;
    const float lse = __ldg(p.tail_lse + place.z * p.tail_lse_stride[0] + place.y * p.tail_lse_stride[1] + place.x);
    if (lse == -infinity()) return;
    const float* value =
        p.tail_out + place.z * p.tail_out_stride[0] + place.y * p.tail_out_stride[1] + place.x * p.tail_out_stride[2];
#pragma unroll
    for (int n = 0; n < 2 * VALUE_TILES; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int column = n * 8 + lane % 4 * 2 + i;
            const float element = column < p.value_dim ? __ldg(value + column) : 0.0f;
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) state.out[m][n][i] = state.out[m][n][2 + i] = element;
        }
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            state.max[m][half] = lse * LOG2_E;
            state.sum[m][half] = lane % 4 == 0 ? 1.0f : 0.0f;
        }
}

/// Divides by the sums, writes `lse`, and writes `out` through the warp's own rows of the Q tile.
__device__ __forceinline__ void write_rows(const Params& p, WarpState& state, unsigned char* rows, int lane, int batch,
                                           int head, int first_row) {
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = m * 16 + half * 8 + lane / 4;
            const float sum = quad_sum(state.sum[m][half]);
            const float inverse = sum == 0.0f ? 0.0f : reciprocal_approx(sum);
            if (lane % 4 == 0 && first_row + row < p.seq_q) {
                p.lse[batch * p.lse_stride[0] + head * p.lse_stride[1] + first_row + row] =
                    sum == 0.0f ? -infinity() : (state.max[m][half] + log2_approx(sum)) * LN_2;
            }
#pragma unroll
            for (int n = 0; n < 2 * VALUE_TILES; ++n)
                *reinterpret_cast<unsigned*>(rows + ValueLayout::offset(row, n) + lane % 4 * 4) =
                    Mma<T>::pack(state.out[m][n][2 * half] * inverse, state.out[m][n][2 * half + 1] * inverse);
        }
    __syncwarp();
    constexpr int CHUNKS = D_V / 8;
    T* out = p.out + batch * p.out_stride[0] + head * p.out_stride[1] + first_row * p.out_stride[2];
#pragma unroll 4
    for (int i = lane; i < WARP_ROWS * CHUNKS; i += 32) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        if (first_row + row < p.seq_q && chunk * 8 < p.value_dim)
            *reinterpret_cast<uint4*>(out + row * p.out_stride[2] + chunk * 8) =
                *reinterpret_cast<const uint4*>(rows + ValueLayout::offset(row, chunk));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
TILEWRIGHT_KERNEL(const __grid_constant__ Params p, const __grid_constant__ Functions f) {
    extern __shared__ __align__(128) unsigned char smem[];
    const int q_block = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
    const int kv_head = head / (p.heads / p.kv_heads);

    const unsigned q_tile = shared_address(smem);
    const unsigned kv_tiles = q_tile + Q_BYTES;  // STAGES pairs, K before V
    Copy{p.q + batch * p.q_stride[0] + head * p.q_stride[1], p.q_stride[2], p.head_dim}
        .template start<BLOCK_Q>(q_tile, q_block * BLOCK_Q, p.seq_q);
    // What steps need and no register has room for. Each warp has its own copy, so no barrier is needed.
    __shared__ struct {
        const T *k, *v;
        KeyBlocks::Counts counts;
    } kept[WARPS];
    const KeyBlocks::Counts counts = KeyBlocks::counts(p, blockIdx);
    if (thread_place() % 32 == 0)
        kept[thread_place() / 32] = {p.k + batch * p.k_stride[0] + kv_head * p.k_stride[1],
                                     p.v + batch * p.v_stride[0] + kv_head * p.v_stride[1], counts};
    __syncwarp();
    // Where a step's keys and values come from, which begin at row `first` and end at row `end`.
    const auto keys_of = [&]([[maybe_unused]] int& first, [[maybe_unused]] int& end) {
<% if constant.TAIL == constant.TAIL_ROW %>        if (is_of_means(first)) {
            first = first_mean_of(first);
            end = p.tail_keys;
            const dim3 place = block_place(p);
            const T* means = p.tail_k + place.z * p.tail_k_stride[0] + place.y / (p.heads / p.kv_heads) * p.tail_k_stride[1];
            return Copy{means, p.tail_k_stride[2], p.head_dim};
        }
<% endif %>        end = p.seq_kv;
        return Copy{kept[thread_place() / 32].k, p.k_stride[2], p.head_dim};
    };
    const auto values_of = [&]([[maybe_unused]] int& first, [[maybe_unused]] int& end) {
<% if constant.TAIL == constant.TAIL_ROW %>        if (is_of_means(first)) {
            first = first_mean_of(first);
            end = p.tail_keys;
            const dim3 place = block_place(p);
            const T* means = p.tail_v + place.z * p.tail_v_stride[0] + place.y / (p.heads / p.kv_heads) * p.tail_v_stride[1];
            return ValueCopy{means, p.tail_v_stride[2], p.value_dim};
        }
<% endif %>        end = p.seq_kv;
        return ValueCopy{kept[thread_place() / 32].v, p.v_stride[2], p.value_dim};
    };
    const auto start_keys = [&](unsigned tile, int first) {
        int end;
        const Copy copy = keys_of(first, end);
        copy.template start<STEP_KV>(tile, first, end);
    };
    const auto start_values = [&](unsigned tile, int first) {
        int end;
        const ValueCopy copy = values_of(first, end);
        copy.template start<STEP_KV>(tile, first, end);
    };

    KeyBlocks blocks;
    int steps = counts.all * STEPS_PER_BLOCK;
<% if constant.TAIL == constant.TAIL_ROW %>    const int steps_of_keys = steps;
    constexpr int STEPS_PER_PIECE = STEP_KV < TAIL_PIECE ? TAIL_PIECE / STEP_KV : 1;
    auto means = TailPieces<STEP_KV>::of(p, block_place(p));
    int first_mean = -1;
    steps += means.total() * STEPS_PER_PIECE;
<% endif %>    // Must be asked for each step in turn.
    const auto first_key_of = [&](int step) {
<% if constant.TAIL == constant.TAIL_ROW %>        if (step >= steps_of_keys) {
            if (step >= steps) return p.kv_blocks * BLOCK_KV;
            const int within = (step - steps_of_keys) % STEPS_PER_PIECE;
            if (within == 0) first_mean = means.next();
            return as_first_key(first_mean + within * STEP_KV);
        }
<% endif %>        if (step % (32 * STEPS_PER_BLOCK) == 0) blocks.move_window(p, kept[thread_place() / 32].counts, step / STEPS_PER_BLOCK, [&] { return block_place(p); });
        return blocks.at(step / STEPS_PER_BLOCK) * BLOCK_KV + step % STEPS_PER_BLOCK * STEP_KV;
    };
    int first_key[AHEAD + 1];  // of this step and those whose copies start before it ends
#pragma unroll
    for (int i = 0; i < AHEAD + 1; ++i) first_key[i] = first_key_of(i);

    if constexpr (STAGES == 1) {
        if (steps > 0) start_keys(kv_tiles, first_key[0]);
        copy_commit();
    } else {
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            if (i < steps) {
                start_keys(kv_tiles + i * PAIR_BYTES, first_key[i]);
                start_values(kv_tiles + i * PAIR_BYTES + K_BYTES, first_key[i]);
            }
            copy_commit();
        }
    }

    WarpState state;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            state.max[m][half] = LOWEST;
            state.sum[m][half] = 0.0f;
        }
#pragma unroll
        for (int n = 0; n < 2 * VALUE_TILES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) state.out[m][n][i] = 0.0f;
    }
    if constexpr (TAIL == TAIL_BLOCK) begin_with_tail(p, state);
    Queries queries;

    // Scores times this are exponents of two. The maxima are taken before the product, so it must be positive: scores
    // take the sign of a negative scale by themselves, and a zero scale becomes one too small to matter.
    const auto exponent_scale = [&] {
        float magnitude = fmaxf(fabsf(p.scale), 1e-30f);
        asm volatile("" : "+f"(magnitude));  // made anew each step, not kept
        return HAS_SCORE_MOD ? LOG2_E : LOG2_E * magnitude;
    };

    unsigned slot = 0;  // byte offset of this step's pair of tiles
    for (int step = 0; step < steps; ++step) {
        copy_wait<(STAGES > 2 ? STAGES - 2 : 0)>();
        __syncthreads();  // this step's tiles are visible, and no warp still reads the last step's
        // Lanes' addresses are cheap to make again and too many to keep through the loop.
        queries.address = Layout::lane_by_columns(q_tile, thread_place() / 32 * WARP_ROWS, thread_place() % 32);
        if (step == 0) queries.load();
        Scores scores;
        // The copies that run under these products start between them, a few at a time: in one burst they would hold the
        // warp up until the copy queue has room. With one stage they are this step's V, else a later step's K, then V.
        Copy copy{nullptr, 0, p.head_dim};
        Copy::Passes passes;
        ValueCopy value_copy{nullptr, 0, p.value_dim};
        ValueCopy::Passes value_passes;
        const unsigned free_slot = slot == 0 ? (STAGES - 1) * PAIR_BYTES : slot - PAIR_BYTES;
        const auto copy_some = [&](int d) {
            constexpr int HALF = D_TILES / 2, PASSES = STEP_KV / Copy::ROWS_PER_PASS;
            static_assert(PASSES >= 1, "a pass of all threads must not be longer than the tile");
            if (STAGES == 1 && d >= HALF) return;
            if (d == 0 && STAGES > 1) {
                int first = first_key[AHEAD], end;
                copy = keys_of(first, end);
                passes = copy.passes(kv_tiles + free_slot, first, end);
            } else if (d % HALF == 0) {
                int first = first_key[STAGES == 1 ? 0 : AHEAD], end;
                value_copy = values_of(first, end);
                value_passes = value_copy.passes(kv_tiles + (STAGES == 1 ? 0 : free_slot) + K_BYTES, first, end);
            }
#pragma unroll
            for (int i = d % HALF * PASSES / HALF; i < (d % HALF + 1) * PASSES / HALF; ++i)
                if (STAGES > 1 && d < HALF) copy.next(passes, i * Copy::ROWS_PER_PASS);
                else value_copy.next(value_passes, i * Copy::ROWS_PER_PASS);
        };
        multiply_queries_keys(scores, queries, Layout::lane_by_rows(kv_tiles + slot, 0, thread_place() % 32), copy_some);
        copy_commit();

        if constexpr (STAGES == 1) {
            copy_wait<0>();
            __syncthreads();  // V is visible, and no warp still reads K
            if (step + 1 < steps) start_keys(kv_tiles, first_key[1]);
            copy_commit();
        }

        if constexpr (HAS_SCORE_MOD) {
            each_score(scores, [&](float& score, int row, int key) {
                score = f.score_mod(score * p.scale, batch, head, q_block * BLOCK_Q + row, first_key[0] + key);
            });
        } else if (p.scale < 0.0f) {
            each_score(scores, [&](float& score, int, int) { score = -score; });
        }
<% if constant.TAIL == constant.TAIL_ROW %>        if (is_of_means(first_key[0])) {
            const int first = first_mean_of(first_key[0]);
            const float* weights = tail_weights_of(p, block_place(p)) + first;
            each_score(scores, [&](float& score, int, int mean) {
                score = first + mean < p.tail_keys ? weighted_score(score, __ldg(weights + mean), p.scale) : -infinity();
            });
        }
<% endif %>        if (first_key[0] + STEP_KV > p.seq_kv)
            each_score(scores, [&](float& score, int, int key) {
                if (first_key[0] + key >= p.seq_kv) score = -infinity();
            });
        if (HAS_MASK_MOD && step < kept[thread_place() / 32].counts.partial * STEPS_PER_BLOCK)
            each_score(scores, [&](float& score, int row, int key) {
                if (!f.mask_mod(batch, head, q_block * BLOCK_Q + row, first_key[0] + key)) score = -infinity();
            });

        const float to_exponent = exponent_scale();
        raise_maxima(state, scores, to_exponent);
        accumulate_values(state, scores, to_exponent,
                          ValueLayout::lane_by_columns(kv_tiles + slot + K_BYTES, 0, thread_place() % 32));

#pragma unroll
        for (int i = 0; i < AHEAD; ++i) first_key[i] = first_key[i + 1];
        first_key[AHEAD] = first_key_of(step + AHEAD + 1);
        if constexpr (STAGES > 1) slot = slot == (STAGES - 1) * PAIR_BYTES ? 0 : slot + PAIR_BYTES;
    }
    copy_wait<0>();
    if (steps == 0) __syncthreads();  // the copies of Q by other warps must have landed before its rows are overwritten
    const int warp_row = thread_place() / 32 * WARP_ROWS;
    write_rows(p, state, smem + warp_row * Layout::ROW_BYTES, thread_place() % 32, batch, head, q_block * BLOCK_Q + warp_row);
}
