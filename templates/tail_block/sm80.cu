// The block tail: one thread block has ROWS query blocks of a head, and its warps take KEYS key blocks in turn, each
// with a softmax of its own. What they have found is put together at the end, in the order of the warps.
//
// The query means lie in shared memory, split. Means of keys and values come straight to registers, for no other warp
// wants them: four neighbouring elements of a row at a time, as the order of a product's terms and that of its columns
// are free. In the product with the query means a lane's four elements serve as two columns of two products. In that
// with the values, terms l % 4 and l % 4 + 4 are key blocks 2 (l % 4) and the next, so that the scores' accumulators
// are its operand as they are; column l / 4 of product t of four is column 4 (l / 4) + t.
//
// Scores are products of three of TF32 (tf32.cuh), for an exponential makes their absolute error a relative one;
// weights and values are rounded to TF32.
<% include "lib/thread.cuh" %>
<% include "lib/math.cuh" %>
<% include "lib/quad.cuh" %>
<% include "lib/tf32.cuh" %>
<% include "lib/block_bits.cuh" %>

constexpr int KEYS = 16;           // key blocks that a warp takes at a time
constexpr int HALVES = KEYS / 8;   // of 8: a product's columns, and the terms of the next
constexpr int STEPS = D / 8;       // of 8 columns of the query means
constexpr int GROUPS = D_V / 32;   // of four products' columns
// Pieces in which the means come, some of them on their way at once: 16 columns of KEYS keys, 32 columns of 8 values.
constexpr int K_PIECES = D / 16;
constexpr int V_PIECES = GROUPS * HALVES;
constexpr int AHEAD = 2;
constexpr unsigned ALL_LANES = 0xffffffffu;
// Accumulators of 128 columns leave room for 16 warps on a multiprocessor, larger ones for 8; so does a folded grid,
// whose divisions take registers.
#ifdef TILEWRIGHT_FOLDED
constexpr int CTAS = 8 / WARPS;
#else
constexpr int CTAS = (D_V > 128 ? 8 : 16) / WARPS;
#endif

static_assert(ROWS == 16 && THREADS == 32 * WARPS && D % 32 == 0 && D_V % 32 == 0 && MERGED % 32 == 0);
static_assert(8 * ROWS * D <= SMEM_BYTES && 4 * ROWS * WARPS * (PITCH + 2) <= SMEM_BYTES);

/// The nearest of TF32.
__device__ __forceinline__ unsigned rounded_tf32(float x) {
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
    return rounded;
}

/// What an exponential is taken against: a maximum, or 0 where there is none yet.
__device__ __forceinline__ float base_of(float maximum) { return maximum == -infinity() ? 0.0f : maximum; }

extern "C" __global__ void __launch_bounds__(THREADS, CTAS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    uint4* q_high = reinterpret_cast<uint4*>(smem);  // [STEPS][32]
    uint4* q_low = q_high + STEPS * 32;

    const long long head = blockIdx.y, batch = blockIdx.z;
    const int kv_head = blockIdx.y / (p.heads / p.kv_heads);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;  // of the lanes that share a row
    const int first_q = blockIdx.x * ROWS;
    const int rows = min(ROWS, p.q_blocks - first_q);
    const float* q_mean =
        p.q_mean + batch * p.q_mean_stride[0] + head * p.q_mean_stride[1] + first_q * p.q_mean_stride[2];
    const float* k_mean = p.k_mean + batch * p.k_mean_stride[0] + kv_head * p.k_mean_stride[1];
    const float* v_mean = p.v_mean + batch * p.v_mean_stride[0] + kv_head * p.v_mean_stride[1];
    const int* dropped =
        p.dropped + batch * p.dropped_stride[0] + head * p.dropped_stride[1] + first_q * p.dropped_stride[2];

    // The query means as the products want them: the elements of a lane side by side.
    for (int i = threadIdx.x; i < ROWS * (D / 4); i += THREADS) {
        const int row = i / (D / 4), column = i % (D / 4) * 4;
        float4 piece = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (row < rows && column < p.head_dim)
            piece = __ldg(reinterpret_cast<const float4*>(q_mean + row * p.q_mean_stride[2] + column));
        const float elements[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int step = column / 16 * 2 + c / 2;
            const int place = (step * 32 + row % 8 * 4 + column % 16 / 4) * 4 + c % 2 * 2 + row / 8;
            const Split split(elements[c]);
            reinterpret_cast<unsigned*>(q_high)[place] = split.high;
            reinterpret_cast<unsigned*>(q_low)[place] = split.low;
        }
    }
    __syncthreads();

    // Of rows `group` and `group` + 8: the largest score, this lane's part of the sum of weights, and the weighted
    // values so far.
    float maximum[2] = {-infinity(), -infinity()}, sum[2] = {};
    float acc[GROUPS][4][4] = {};
    const float scale = p.scale * LOG2_E;
    const int last = p.kv_blocks - 1;
    const float keys = log2f(static_cast<float>(p.block_kv));
    const float last_keys = log2f(static_cast<float>(p.seq_kv - last * p.block_kv));

    for (int first = warp * KEYS; first < p.kv_blocks; first += WARPS * KEYS) {
        unsigned bits[2];  // which of these blocks the rows drop
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = group + 8 * half;
            bits[half] = 0;
            if (row < rows)
                bits[half] =
                    static_cast<unsigned>(__ldg(dropped + row * p.dropped_stride[2] + first / 32)) >> first % 32;
            bits[half] &= bits_below(min(KEYS, p.kv_blocks - first));
        }
        // Blocks that no row drops are not read: they may hold anything.
        const unsigned wanted = __reduce_or_sync(ALL_LANES, bits[0] | bits[1]);
        if (wanted == 0) continue;

        // This lane's row of each 8 key blocks.
        const float* source = k_mean + (first + group) * p.k_mean_stride[2] + 4 * member;
        float4 k[AHEAD][HALVES];
        const auto fetch_keys = [&](int piece) {
#pragma unroll
            for (int n = 0; n < HALVES; ++n) {
                float4& to = k[piece % AHEAD][n];
                to = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if ((wanted >> (8 * n + group) & 1) && 16 * piece + 4 * member < p.head_dim)
                    to = __ldg(reinterpret_cast<const float4*>(source + 8 * n * p.k_mean_stride[2] + 16 * piece));
            }
        };
        float score[HALVES][4] = {};
#pragma unroll
        for (int piece = 0; piece < AHEAD; ++piece) fetch_keys(piece);
#pragma unroll
        for (int piece = 0; piece < K_PIECES; ++piece) {
            float4 row[HALVES];
#pragma unroll
            for (int n = 0; n < HALVES; ++n) row[n] = k[piece % AHEAD][n];
            if (piece + AHEAD < K_PIECES) fetch_keys(piece + AHEAD);
#pragma unroll
            for (int pair = 0; pair < 2; ++pair) {
                const uint4 h = q_high[(2 * piece + pair) * 32 + lane], l = q_low[(2 * piece + pair) * 32 + lane];
                const unsigned high[4] = {h.x, h.y, h.z, h.w}, low[4] = {l.x, l.y, l.z, l.w};
#pragma unroll
                for (int n = 0; n < HALVES; ++n) {
                    const Split b0(pair == 0 ? row[n].x : row[n].z), b1(pair == 0 ? row[n].y : row[n].w);
                    add_tf32(score[n], low, b0.high, b1.high);
                    add_tf32(score[n], high, b0.low, b1.low);
                    add_tf32(score[n], high, b0.high, b1.high);
                }
            }
        }

        // Scores to base 2, -inf where the row does not drop the block.
        float top[2] = {maximum[0], maximum[1]};
#pragma unroll
        for (int n = 0; n < HALVES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int column = 8 * n + 2 * member + i % 2;
                float& t = score[n][i];
                const bool is_dropped = bits[i / 2] >> column & 1;
                t = is_dropped ? fmaf(t, scale, first + column == last ? last_keys : keys) : -infinity();
                top[i / 2] = fmaxf(top[i / 2], t);
            }
        float rescale[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            top[half] = quad_max(top[half]);
            rescale[half] = exp2_approx(maximum[half] - base_of(top[half]));
            maximum[half] = top[half];
            sum[half] *= rescale[half];
        }
#pragma unroll
        for (int n = 0; n < HALVES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                score[n][i] = exp2_approx(score[n][i] - base_of(top[i / 2]));
                sum[i / 2] += score[n][i];
            }
#pragma unroll
        for (int g = 0; g < GROUPS; ++g)
#pragma unroll
            for (int t = 0; t < 4; ++t)
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[g][t][i] *= rescale[i / 2];

        source = v_mean + (first + 2 * member) * p.v_mean_stride[2] + 4 * group;
        float4 v[AHEAD][2];
        const auto fetch_values = [&](int piece) {
            const int column = piece / HALVES * 32, n = piece % HALVES;
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float4& to = v[piece % AHEAD][c];
                to = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if ((wanted >> (8 * n + 2 * member + c) & 1) && column + 4 * group < p.value_dim)
                    to = __ldg(reinterpret_cast<const float4*>(source + (8 * n + c) * p.v_mean_stride[2] + column));
            }
        };
#pragma unroll
        for (int piece = 0; piece < AHEAD; ++piece) fetch_values(piece);
#pragma unroll
        for (int piece = 0; piece < V_PIECES; ++piece) {
            const int g = piece / HALVES, n = piece % HALVES;
            float strange = 0.0f;  // NaN, where a value is no number
            unsigned b[2][4];
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const float4 row = v[piece % AHEAD][c];
                const float elements[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
                for (int t = 0; t < 4; ++t) {
                    b[c][t] = rounded_tf32(elements[t]);
                    strange = fmaf(0.0f, __uint_as_float(b[c][t]), strange);
                }
            }
            if (piece + AHEAD < V_PIECES) fetch_values(piece + AHEAD);
            if (!__any_sync(ALL_LANES, strange != 0.0f)) {
                const unsigned weights[4] = {rounded_tf32(score[n][0]), rounded_tf32(score[n][2]),
                                             rounded_tf32(score[n][1]), rounded_tf32(score[n][3])};
#pragma unroll
                for (int t = 0; t < 4; ++t) add_tf32(acc[g][t], weights, b[0][t], b[1][t]);
                continue;
            }
            // A weight of 0 does not keep a NaN of one row's blocks from the other rows: plain FMAs, of each row's own
            // blocks, do.
            const int column = 32 * g + 8 * member;
#pragma unroll
            for (int c = 0; c < 2; ++c)
#pragma unroll 1
                for (int from = 0; from < 4; ++from) {
                    const int key = 8 * n + 2 * from + c;
                    const float weight[2] = {__shfl_sync(ALL_LANES, score[n][c], lane / 4 * 4 + from),
                                             __shfl_sync(ALL_LANES, score[n][2 + c], lane / 4 * 4 + from)};
                    if (!(wanted >> key & 1) || column >= p.value_dim) continue;
                    // One at a time: registers for all of them would be missing everywhere else.
                    const volatile float* row = v_mean + (first + key) * p.v_mean_stride[2] + column;
#pragma unroll
                    for (int i = 0; i < 2; ++i)
#pragma unroll
                        for (int t = 0; t < 4; ++t) {
                            const float value = row[4 * i + t];
                            if (bits[0] >> key & 1) acc[g][t][i] = fmaf(weight[0], value, acc[g][t][i]);
                            if (bits[1] >> key & 1) acc[g][t][2 + i] = fmaf(weight[1], value, acc[g][t][2 + i]);
                        }
                }
        }
    }

    // Every warp's results against the rows' maximum over all warps. The query means are read no more.
    __syncthreads();
    float* results = reinterpret_cast<float*>(smem);  // [WARPS][ROWS][PITCH]
    float* maxima = results + WARPS * ROWS * PITCH;   // [WARPS][ROWS]
    float* sums = maxima + WARPS * ROWS;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        sum[half] = quad_sum(sum[half]);
        if (member == 0) {
            maxima[warp * ROWS + group + 8 * half] = maximum[half];
            sums[warp * ROWS + group + 8 * half] = sum[half];
        }
    }
    __syncthreads();
    // The maximum of a row, and the sum of its weights against it.
    const auto total_of = [&](int row) {
        float top = maxima[row], total = 0.0f;
        for (int i = 1; i < WARPS; ++i) top = fmaxf(top, maxima[i * ROWS + row]);
        for (int i = 0; i < WARPS; ++i)
            total += sums[i * ROWS + row] * exp2_approx(maxima[i * ROWS + row] - base_of(top));
        return make_float2(top, total);
    };
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float2 total = total_of(group + 8 * half);
        // Where nothing is dropped there is nothing to be divided.
        factor[half] = total.y == 0.0f ? 0.0f : exp2_approx(maximum[half] - base_of(total.x)) / total.y;
    }
    if (threadIdx.x < rows) {
        const float2 total = total_of(threadIdx.x);
        float* lse = p.tail_lse + batch * p.tail_lse_stride[0] + head * p.tail_lse_stride[1];
        lse[first_q + threadIdx.x] = LN_2 * (total.x + log2f(total.y));
    }
    float* out =
        p.tail_out + batch * p.tail_out_stride[0] + head * p.tail_out_stride[1] + first_q * p.tail_out_stride[2];
#pragma unroll
    for (int begin = 0; begin < D_V; begin += MERGED) {
        if (begin > 0) __syncthreads();
#pragma unroll
        for (int g = begin / 32; g < min(GROUPS, (begin + MERGED) / 32); ++g)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float* to = results + (warp * ROWS + group + i / 2 * 8) * PITCH + 32 * g - begin + 8 * member + i % 2 * 4;
                const float by = factor[i / 2];
                *reinterpret_cast<float4*>(to) =
                    make_float4(acc[g][0][i] * by, acc[g][1][i] * by, acc[g][2][i] * by, acc[g][3][i] * by);
            }
        __syncthreads();
        for (int i = threadIdx.x; i < ROWS * (MERGED / 4); i += THREADS) {
            const int row = i / (MERGED / 4), column = i % (MERGED / 4) * 4;
            if (row >= rows || begin + column >= p.value_dim) continue;
            float4 total = *reinterpret_cast<const float4*>(results + row * PITCH + column);
            for (int of = 1; of < WARPS; ++of) {
                const float4 part = *reinterpret_cast<const float4*>(results + (of * ROWS + row) * PITCH + column);
                total = make_float4(total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w);
            }
            *reinterpret_cast<float4*>(out + row * p.tail_out_stride[2] + begin + column) = total;
        }
    }
}
