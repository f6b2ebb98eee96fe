// The block tail: one thread block has ROWS query blocks of a head. Key blocks pass by; a warp has 16 of the query blocks
// and a share of the key blocks, with a softmax of its own over them. What the warps have found is put together at the end.
<% include "lib/math.cuh" %>
<% include "lib/block_bits.cuh" %>
constexpr int SUM_COLUMNS = D_V;
<% include "lib/tail_tiles.cuh" %>
<% include "lib/dropped_rows.cuh" %>
<% include "lib/quad.cuh" %>

static_assert(4 * ROWS * SHARES * (PITCH + 2) <= SMEM_BYTES && 4 * ROWS * D + 4 * TAKEN * (D + D_V) <= SMEM_BYTES);

/// What an exponential is taken against: a maximum, or 0 where there is none yet.
__device__ __forceinline__ float base_of(float maximum) { return maximum == -infinity() ? 0.0f : maximum; }

extern "C" __global__ void __launch_bounds__(THREADS, 8 / WARPS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    const SplitTile<D, ROWS> q_tile{shared_address(smem)};
    const SplitTile<D, TAKEN> k_tile{q_tile.end()};
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

    // Of rows `group` and `group` + 8 of the warp's: the largest score, this lane's part of the sum of weights, and the
    // weighted values so far.
    float maximum[2] = {-infinity(), -infinity()}, sum[2] = {};
    float acc[D_V / 8][4] = {};
    const float scale = p.scale * LOG2_E;
    const int last = p.kv_blocks - 1;
    const float log_keys = log2f(static_cast<float>(p.block_kv));
    const float last_log_keys = log2f(static_cast<float>(p.seq_kv - last * p.block_kv));

    for (int first = 0; first < p.kv_blocks; first += TAKEN) {
        if (first > 0) __syncthreads();
        // Blocks that no row drops may hold anything.
        unsigned wanted[WORDS];
        dropped.any(wanted);
        const auto is_wanted = [&](int row) { return has_bit(wanted, row); };
        keys.finish(k_tile, is_wanted);
        const bool is_strange = values.finish(v_tile, is_wanted);
        unsigned bits[2];  // which of its share the rows drop
#pragma unroll
        for (int half = 0; half < 2; ++half) bits[half] = dropped.of_share(16 * warp_group() + group + 8 * half, first);
        // Of the share, those with values that are no numbers: a weight of 0 does not keep them from other rows.
        unsigned strange = 0;
        if (__syncthreads_or(is_strange)) {
            strange = v_tile.strange_of_share();
            __syncthreads();
            v_tile.clear_of_share(strange);
            __syncthreads();
        }
        if (first + TAKEN < p.kv_blocks) begin(first + TAKEN);
        if (!__any_sync(ALL_LANES, (bits[0] | bits[1]) != 0)) continue;

        // Scores to base 2, -inf where the row does not drop the block.
        float score[2][4];
        multiply(score, q_tile, k_tile);
        const int of_share = first + 16 * warp_share();
        float top[2] = {maximum[0], maximum[1]};
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int column = 8 * n + 2 * member + i % 2;
                float& t = score[n][i];
                const bool is_dropped = bits[i / 2] >> column & 1;
                t = is_dropped ? fmaf(t, scale, of_share + column == last ? last_log_keys : log_keys) : -infinity();
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
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                score[n][i] = exp2_approx(score[n][i] - base_of(top[i / 2]));
                sum[i / 2] += score[n][i];
            }
        if (__any_sync(ALL_LANES, rescale[0] != 1.0f || rescale[1] != 1.0f))
#pragma unroll
            for (int c = 0; c < D_V / 8; ++c)
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[c][i] *= rescale[i / 2];
        add_rows<D_V>(acc, score, v_tile, 0);

        // Plain FMAs of each row's own blocks.
        for (unsigned left = strange; left != 0; left &= left - 1) {
            const int key = __ffs(left) - 1, from = lane / 4 * 4 + key % 8 / 2;
            float weight[2];
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int at = 0; at < 4; ++at) {
                    const float of_key = __shfl_sync(ALL_LANES, score[at / 2][2 * half + at % 2], from);
                    if (key / 8 * 2 + key % 2 == at) weight[half] = of_key;
                }
            // One at a time: registers for all of them would be missing everywhere else.
            const volatile float* row = v_mean + (of_share + key) * p.v_mean_stride[2];
#pragma unroll
            for (int c = 0; c < D_V / 8; ++c)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int column = 8 * c + 2 * member + i % 2;
                    if (column < p.value_dim && bits[i / 2] >> key & 1)
                        acc[c][i] = fmaf(weight[i / 2], row[column], acc[c][i]);
                }
        }
    }

    // Every warp's results against the rows' maximum over all shares. The tiles are read no more.
    __syncthreads();
    float* results = reinterpret_cast<float*>(smem);   // [SHARES][ROWS][PITCH]
    float* maxima = results + SHARES * ROWS * PITCH;   // [SHARES][ROWS]
    float* sums = maxima + SHARES * ROWS;
    const int of_warp = 16 * warp_group() + group;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        sum[half] = quad_sum(sum[half]);
        if (member == 0) {
            maxima[warp_share() * ROWS + of_warp + 8 * half] = maximum[half];
            sums[warp_share() * ROWS + of_warp + 8 * half] = sum[half];
        }
    }
    __syncthreads();
    // The maximum of a row, and the sum of its weights against it.
    const auto total_of = [&](int row) {
        float top = maxima[row], total = 0.0f;
        for (int i = 1; i < SHARES; ++i) top = fmaxf(top, maxima[i * ROWS + row]);
        for (int i = 0; i < SHARES; ++i)
            total += sums[i * ROWS + row] * exp2_approx(maxima[i * ROWS + row] - base_of(top));
        return make_float2(top, total);
    };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float2 total = total_of(of_warp + 8 * half);
        // Where nothing is dropped there is nothing to be divided.
        const float factor = total.y == 0.0f ? 0.0f : exp2_approx(maximum[half] - base_of(total.x)) / total.y;
#pragma unroll
        for (int c = 0; c < D_V / 8; ++c)
#pragma unroll
            for (int i = 0; i < 2; ++i) acc[c][2 * half + i] *= factor;
    }
    if (threadIdx.x < rows) {
        const float2 total = total_of(threadIdx.x);
        float* lse = p.tail_lse + batch * p.tail_lse_stride[0] + head * p.tail_lse_stride[1];
        lse[first_q + threadIdx.x] = LN_2 * (total.x + log2f(total.y));
    }
    write_merged<D_V>(acc, results,
                      p.tail_out + batch * p.tail_out_stride[0] + head * p.tail_out_stride[1] +
                          first_q * p.tail_out_stride[2],
                      p.tail_out_stride[2], rows, p.value_dim, [](int) { return 1.0f; });
}
