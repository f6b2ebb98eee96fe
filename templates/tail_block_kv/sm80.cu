// The gradients of the key and value means of a block tail: one thread block has ROWS key blocks of a head, and its
// warps take TAKEN query blocks in turn, of all heads of the group. What they have found is added up at the end, in the
// order of the warps.
<% include "lib/math.cuh" %>
<% include "lib/block_bits.cuh" %>
<% include "lib/tail_products.cuh" %>

// Registers hold sums of 256 columns and little else. Where the two gradients have more, a thread block makes
// PART columns of one of them.
constexpr int PARTS = D + D_V > 256 ? (D + D_V) / PART : 1;
// Sums of more than 128 columns leave room for 8 warps on a multiprocessor, others for 12.
constexpr int CTAS = (D + D_V > 128 ? 8 : 12) / WARPS;

static_assert(PARTS == 1 || D % PART == 0 && D_V % PART == 0);

/// The gradients of ROWS key blocks from `first_kv` on: K_COLUMNS of the keys' and V_COLUMNS of the values', from
/// `column` on.
template <int K_COLUMNS, int V_COLUMNS>
__device__ __forceinline__ void write_gradients(const Params& p, unsigned char* smem, int first_kv, int column,
                                                int kv_head, long long batch) {
    constexpr bool OF_KEYS = K_COLUMNS > 0, OF_VALUES = V_COLUMNS > 0;
    uint4* k_split = reinterpret_cast<uint4*>(smem);  // [2][D / 8][32]
    uint4* v_split = k_split + 2 * (D / 8) * 32;      // [2][D_V / 8][32]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;  // of the lanes that share a row
    const int rows = min(ROWS, p.kv_blocks - first_kv);
    const auto rows_of = [&](const float* mean, const long long* stride) {
        return mean + batch * stride[0] + kv_head * stride[1] + first_kv * stride[2];
    };
    split_rows<D>(k_split, rows_of(p.k_mean, p.k_mean_stride), p.k_mean_stride[2], rows, p.head_dim);
    if constexpr (OF_KEYS)
        split_rows<D_V>(v_split, rows_of(p.v_mean, p.v_mean_stride), p.v_mean_stride[2], rows, p.value_dim);
    __syncthreads();

    const float scale = p.scale * LOG2_E;
    const auto keys_of = [&](int row) {
        return static_cast<float>(min(p.block_kv, p.seq_kv - (first_kv + row) * p.block_kv));
    };
    // Of rows `group` and `group` + 8. Those that are not there have no bits.
    const float keys[2] = {log2f(keys_of(group)), log2f(keys_of(group + 8))};
    const int group_heads = p.heads / p.kv_heads;
    const int chunks = (p.q_blocks + TAKEN - 1) / TAKEN;  // of a head

    Sums<K_COLUMNS> dk;
    Sums<V_COLUMNS> dv;
    int turn = warp;
    for (int of_group = 0; of_group < group_heads; ++of_group, turn -= chunks) {
        const long long head = kv_head * group_heads + of_group;
        for (; turn < chunks; turn += WARPS) {
            // What lane l and l + 16 know of query block l of these: which of the key blocks it drops, and its sums. A
            // log-sum-exp of -inf says that it drops nothing.
            const int first = turn * TAKEN, place = first + lane % TAKEN;
            unsigned bits = 0;
            float lse = -infinity(), delta = 0.0f;
            if (place < p.q_blocks) {
                lse = __ldg(p.tail_lse + batch * p.tail_lse_stride[0] + head * p.tail_lse_stride[1] + place);
                if constexpr (OF_KEYS)
                    delta =
                        __ldg(p.tail_delta + batch * p.tail_delta_stride[0] + head * p.tail_delta_stride[1] + place);
                const int* dropped = p.dropped + batch * p.dropped_stride[0] + head * p.dropped_stride[1] +
                                     place * p.dropped_stride[2] + first_kv / 32;
                if (lse != -infinity())
                    bits = static_cast<unsigned>(__ldg(dropped)) >> first_kv % 32 & bits_below(rows);
            }
            // Query blocks that drop none of these are not read: they may hold anything.
            const unsigned wanted = __ballot_sync(ALL_LANES, bits != 0) & bits_below(TAKEN);
            if (wanted == 0) continue;

            const float* q_mean =
                p.q_mean + batch * p.q_mean_stride[0] + head * p.q_mean_stride[1] + first * p.q_mean_stride[2];
            const float* g = p.g + batch * p.g_stride[0] + head * p.g_stride[1] + first * p.g_stride[2];
            float weight[HALVES][4];
            unsigned strange_q;
            product_over_columns<D>(weight, k_split, q_mean, p.q_mean_stride[2], wanted, p.head_dim, strange_q);
#pragma unroll
            for (int n = 0; n < HALVES; ++n)
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    const int query = 8 * n + 2 * member + c;
                    const unsigned of_query = __shfl_sync(ALL_LANES, bits, query);
                    const float lse_of_query = __shfl_sync(ALL_LANES, lse, query);
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        float& to = weight[n][2 * half + c];
                        const float score = fmaf(to, scale, keys[half]);
                        const bool is_dropped = of_query >> (group + 8 * half) & 1;
                        to = is_dropped ? exp2_approx(fmaf(lse_of_query, -LOG2_E, score)) : 0.0f;
                    }
                }
            // A query block of means that are no numbers has made NaN of its weights: with 0 in their place these stay
            // what they are, and key blocks that it does not drop get nothing of it.
            unsigned strange_g = 0;
            if constexpr (OF_KEYS) {
                float dt[HALVES][4];
                product_over_columns<D_V>(dt, v_split, g, p.g_stride[2], wanted, p.value_dim, strange_g);
#pragma unroll
                for (int n = 0; n < HALVES; ++n)
#pragma unroll
                    for (int c = 0; c < 2; ++c) {
                        const float delta_of_query = __shfl_sync(ALL_LANES, delta, 8 * n + 2 * member + c);
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            float& to = dt[n][2 * half + c];
                            const float by = weight[n][2 * half + c];
                            // What has no weight has no gradient, whatever else it has.
                            to = by == 0.0f ? 0.0f : by * (to - delta_of_query);
                        }
                    }
                add_rows(dk, dt, q_mean + column, p.q_mean_stride[2], wanted & ~strange_q, p.head_dim - column);
            }
            if constexpr (OF_VALUES) {
                if constexpr (!OF_KEYS) strange_g = strange_rows<D_V>(g, p.g_stride[2], wanted, p.value_dim);
                if (strange_g != 0) {
                    // The same of sums of gradients, which the weights do not know of yet.
#pragma unroll
                    for (int n = 0; n < HALVES; ++n)
#pragma unroll
                        for (int i = 0; i < 4; ++i)
                            if (weight[n][i] != 0.0f && strange_g >> (8 * n + 2 * member + i % 2) & 1)
                                weight[n][i] = __int_as_float(0x7fffffff);
                }
                add_rows(dv, weight, g + column, p.g_stride[2], wanted & ~strange_g, p.value_dim - column);
            }
        }
    }

    float* results = reinterpret_cast<float*>(smem);
    const auto place_of = [&](float* gradient, const long long* stride) {
        return gradient + batch * stride[0] + kv_head * stride[1] + first_kv * stride[2] + column;
    };
    if constexpr (OF_KEYS)
        write_merged(dk, results, place_of(p.dk_mean, p.dk_mean_stride), p.dk_mean_stride[2], rows, p.head_dim - column,
                     [&](int row) { return p.scale / keys_of(row); });
    if constexpr (OF_VALUES)
        write_merged(dv, results, place_of(p.dv_mean, p.dv_mean_stride), p.dv_mean_stride[2], rows,
                     p.value_dim - column, [&](int row) { return 1.0f / keys_of(row); });
}

extern "C" __global__ void __launch_bounds__(THREADS, CTAS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    const int first_kv = blockIdx.x / PARTS * ROWS, part = blockIdx.x % PARTS;
    const int kv_head = blockIdx.y, batch = blockIdx.z;
    if constexpr (PARTS == 1)
        write_gradients<D, D_V>(p, smem, first_kv, 0, kv_head, batch);
    else if (part < D / PART)
        write_gradients<PART, 0>(p, smem, first_kv, part * PART, kv_head, batch);
    else
        write_gradients<0, PART>(p, smem, first_kv, (part - D / PART) * PART, kv_head, batch);
}
