// The gradient of the query means of a block tail: one thread block has ROWS query blocks of a head. Key blocks pass by; a
// warp has 16 of the query blocks and a share of the key blocks. What the warps have found is added up at the end.
<% include "lib/math.cuh" %>
<% include "lib/block_bits.cuh" %>
constexpr int SUM_COLUMNS = D;
<% include "lib/tail_tiles.cuh" %>
<% include "lib/dropped_rows.cuh" %>

static_assert(4 * (ROWS + TAKEN) * (D + D_V) <= SMEM_BYTES);

extern "C" __global__ void __launch_bounds__(THREADS, 8 / WARPS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    const SplitTile<D, ROWS> q_tile{shared_address(smem)};
    const SplitTile<D_V, ROWS> g_tile{q_tile.end()};
    const SplitTile<D, TAKEN> k_tile{g_tile.end()};
    const SplitTile<D_V, TAKEN> v_tile{k_tile.end()};

    const long long head = blockIdx.y, batch = blockIdx.z;
    const int kv_head = blockIdx.y / (p.heads / p.kv_heads);
    const int lane = threadIdx.x % 32;
    const int group = lane / 4, member = lane % 4;  // of the lanes that share a row
    const int first_q = blockIdx.x * ROWS;
    const int rows = min(ROWS, p.q_blocks - first_q);
    const float* k_mean = p.k_mean + batch * p.k_mean_stride[0] + kv_head * p.k_mean_stride[1];
    const float* v_mean = p.v_mean + batch * p.v_mean_stride[0] + kv_head * p.v_mean_stride[1];
    DroppedRows dropped{
        p.dropped + batch * p.dropped_stride[0] + head * p.dropped_stride[1] + first_q * p.dropped_stride[2],
        p.dropped_stride[2], rows, p.kv_blocks};
    Arriving<D, TAKEN> keys;
    Arriving<D_V, TAKEN> values;
    const auto begin = [&](int first) {
        dropped.begin(first);
        keys.begin(k_mean + first * p.k_mean_stride[2], p.k_mean_stride[2], p.kv_blocks - first, p.head_dim);
        values.begin(v_mean + first * p.v_mean_stride[2], p.v_mean_stride[2], p.kv_blocks - first, p.value_dim);
    };
    begin(0);
    store_own(q_tile,
              p.q_mean + batch * p.q_mean_stride[0] + head * p.q_mean_stride[1] + first_q * p.q_mean_stride[2],
              p.q_mean_stride[2], rows, p.head_dim);
    store_own(g_tile, p.g + batch * p.g_stride[0] + head * p.g_stride[1] + first_q * p.g_stride[2], p.g_stride[2], rows,
              p.value_dim);

    // Of rows `group` and `group` + 8 of the warp's: a log-sum-exp of -inf says that the row drops nothing. So do rows
    // that are not there.
    float lse[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = 16 * warp_group() + group + 8 * half;
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
    const float log_keys = log2f(static_cast<float>(p.block_kv));
    const float last_log_keys = log2f(static_cast<float>(p.seq_kv - last * p.block_kv));

    float dq[D / 8][4] = {};
    for (int first = 0; first < p.kv_blocks; first += TAKEN) {
        if (first > 0) __syncthreads();
        // Blocks that no row drops may hold anything.
        unsigned wanted[WORDS];
        dropped.any(wanted);
        const auto is_wanted = [&](int row) { return has_bit(wanted, row); };
        const bool is_strange = keys.finish(k_tile, is_wanted);
        values.finish(v_tile, is_wanted);
        unsigned bits[2];  // which of its share the rows drop
#pragma unroll
        for (int half = 0; half < 2; ++half)
            bits[half] =
                lse[half] == -infinity() ? 0u : dropped.of_share(16 * warp_group() + group + 8 * half, first);
        // A key that is no number makes NaN of the gradients of the rows that drop it. Other rows get nothing of it.
        unsigned strange = 0;
        if (__syncthreads_or(is_strange)) {
            strange = k_tile.strange_of_share();
            __syncthreads();
            k_tile.clear_of_share(strange);
            __syncthreads();
        }
        if (first + TAKEN < p.kv_blocks) begin(first + TAKEN);
        if (!__any_sync(ALL_LANES, (bits[0] | bits[1]) != 0)) continue;

        // Weights, 0 where the row does not drop the block, and with them the gradients of the scores.
        float dt[2][4], product[2][4];
        multiply(product, g_tile, v_tile);
        multiply(dt, q_tile, k_tile);
        const int of_share = first + 16 * warp_share();
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int column = 8 * n + 2 * member + i % 2;
                float score = fmaf(dt[n][i], scale, of_share + column == last ? last_log_keys : log_keys);
                if (strange >> column & 1) score = not_a_number();
                const float weight =
                    bits[i / 2] >> column & 1 ? exp2_approx(fmaf(lse[i / 2], -LOG2_E, score)) : 0.0f;
                // What has no weight has no gradient, whatever else it has.
                dt[n][i] = weight == 0.0f ? 0.0f : weight * (product[n][i] - delta[i / 2]);
            }
        add_rows<D>(dq, dt, k_tile, 0);
    }

    write_merged<D>(dq, reinterpret_cast<float*>(smem),
                    p.dq_mean + batch * p.dq_mean_stride[0] + head * p.dq_mean_stride[1] +
                        first_q * p.dq_mean_stride[2],
                    p.dq_mean_stride[2], rows, p.head_dim, [&](int row) {
                        return p.scale / static_cast<float>(min(p.block_q, p.seq_q - (first_q + row) * p.block_q));
                    });
}
