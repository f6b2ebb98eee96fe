// The gradient of the query means of a block tail: one thread block has ROWS query blocks of a head, and its warps take
// TAKEN key blocks in turn. What they have found is added up at the end, in the order of the warps.
<% include "lib/math.cuh" %>
<% include "lib/block_bits.cuh" %>
<% include "lib/tail_products.cuh" %>

// How many warps a multiprocessor has room for, beside their sums.
constexpr int CTAS = (D > 96 ? 8 : D > 64 ? 12 : 16) / WARPS;

extern "C" __global__ void __launch_bounds__(THREADS, CTAS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    uint4* q_split = reinterpret_cast<uint4*>(smem);  // [2][D / 8][32]
    uint4* g_split = q_split + 2 * (D / 8) * 32;      // [2][D_V / 8][32]

    const long long head = blockIdx.y, batch = blockIdx.z;
    const int kv_head = blockIdx.y / (p.heads / p.kv_heads);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;  // of the lanes that share a row
    const int first_q = blockIdx.x * ROWS;
    const int rows = min(ROWS, p.q_blocks - first_q);
    const float* q_mean =
        p.q_mean + batch * p.q_mean_stride[0] + head * p.q_mean_stride[1] + first_q * p.q_mean_stride[2];
    const float* g = p.g + batch * p.g_stride[0] + head * p.g_stride[1] + first_q * p.g_stride[2];
    split_rows<D>(q_split, q_mean, p.q_mean_stride[2], rows, p.head_dim);
    split_rows<D_V>(g_split, g, p.g_stride[2], rows, p.value_dim);
    __syncthreads();

    const float* k_mean = p.k_mean + batch * p.k_mean_stride[0] + kv_head * p.k_mean_stride[1];
    const float* v_mean = p.v_mean + batch * p.v_mean_stride[0] + kv_head * p.v_mean_stride[1];
    const int* dropped =
        p.dropped + batch * p.dropped_stride[0] + head * p.dropped_stride[1] + first_q * p.dropped_stride[2];
    // Of rows `group` and `group` + 8: a log-sum-exp of -inf says that the row drops nothing. So do rows that are not
    // there.
    float lse[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = group + 8 * half;
        lse[half] = -infinity();
        delta[half] = 0.0f;
        if (row < rows) {
            lse[half] = __ldg(p.tail_lse + batch * p.tail_lse_stride[0] + head * p.tail_lse_stride[1] + first_q + row);
            delta[half] =
                __ldg(p.tail_delta + batch * p.tail_delta_stride[0] + head * p.tail_delta_stride[1] + first_q + row);
        }
    }
    const float scale = p.scale * LOG2_E;
    const int last = p.kv_blocks - 1;
    const float keys = log2f(static_cast<float>(p.block_kv));
    const float last_keys = log2f(static_cast<float>(p.seq_kv - last * p.block_kv));

    Sums<D> dq;
    for (int first = warp * TAKEN; first < p.kv_blocks; first += WARPS * TAKEN) {
        unsigned bits[2];  // which of these blocks the rows drop
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            bits[half] = 0;
            if (lse[half] != -infinity())
                bits[half] = static_cast<unsigned>(
                                 __ldg(dropped + (group + 8 * half) * p.dropped_stride[2] + first / 32)) >> first % 32;
            bits[half] &= bits_below(min(TAKEN, p.kv_blocks - first));
        }
        // Blocks that no row drops are not read: they may hold anything.
        const unsigned wanted = __reduce_or_sync(ALL_LANES, bits[0] | bits[1]);
        if (wanted == 0) continue;

        // Weights, 0 where the row does not drop the block, and with them the gradients of the scores.
        float dt[HALVES][4], product[HALVES][4];
        unsigned strange;
        product_over_columns<D_V>(product, g_split, v_mean + first * p.v_mean_stride[2], p.v_mean_stride[2], wanted,
                                  p.value_dim, strange);
        product_over_columns<D>(dt, q_split, k_mean + first * p.k_mean_stride[2], p.k_mean_stride[2], wanted,
                                p.head_dim, strange);
#pragma unroll
        for (int n = 0; n < HALVES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int column = 8 * n + 2 * member + i % 2;
                const float score = fmaf(dt[n][i], scale, first + column == last ? last_keys : keys);
                const float weight =
                    bits[i / 2] >> column & 1 ? exp2_approx(fmaf(lse[i / 2], -LOG2_E, score)) : 0.0f;
                // What has no weight has no gradient, whatever else it has.
                dt[n][i] = weight == 0.0f ? 0.0f : weight * (product[n][i] - delta[i / 2]);
            }
        // A key that is no number has made NaN of the gradients of the rows that drop it: with 0 in its place they stay
        // what they are, and other rows get nothing of it.
        add_rows<D>(dq, dt, k_mean + first * p.k_mean_stride[2], p.k_mean_stride[2], wanted & ~strange, p.head_dim);
    }

    write_merged(dq, reinterpret_cast<float*>(smem),
                 p.dq_mean + batch * p.dq_mean_stride[0] + head * p.dq_mean_stride[1] + first_q * p.dq_mean_stride[2],
                 p.dq_mean_stride[2], rows, p.head_dim, [&](int row) {
                     return p.scale / static_cast<float>(min(p.block_q, p.seq_q - (first_q + row) * p.block_q));
                 });
}
