// What a block tail gets of its rows' gradients: one thread block sums the rows of one query block.
//
// A thread owns a column of 8 elements and every GROUPS-th row, as in pool_run.cuh. Its loads are issued in batches
// before any is used. A row's product of `out` and `d_out` is never put together: each thread weights its part of it
// and adds it to those of its other rows.
<% include "lib/math.cuh" %>
<% include "lib/warp.cuh" %>

constexpr int COLUMNS = D / 8;             // 16-byte pieces of a row
constexpr int GROUPS = THREADS / COLUMNS;  // rows read at once; threads left over (D = 96, 192) idle
constexpr int ROWS = (BLOCK_Q + GROUPS - 1) / GROUPS;  // of a thread
constexpr int BATCH = ROWS < 4 ? ROWS : 4;             // rows of a thread whose two loads are in flight

static_assert(D % 8 == 0 && GROUPS >= 1 && 4 * GROUPS * D + 4 * GROUPS * COLUMNS <= SMEM_BYTES);

// 80 registers hold the loads in flight, and 768 threads of them hide the latency.
extern "C" __global__ void __launch_bounds__(THREADS, 768 / THREADS)
    TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    float* partial = reinterpret_cast<float*>(smem);  // [GROUPS][D]
    float* partial_delta = partial + GROUPS * D;      // [GROUPS][COLUMNS]

    const long long batch = blockIdx.z, head = blockIdx.y;
    const int block = blockIdx.x;
    const int first = block * BLOCK_Q;
    const float tail_lse = __ldg(p.tail_lse + batch * p.tail_lse_stride[0] + head * p.tail_lse_stride[1] + block);
    float* g = p.g + batch * p.g_stride[0] + head * p.g_stride[1] + block * p.g_stride[2];
    float* tail_delta = p.tail_delta + batch * p.tail_delta_stride[0] + head * p.tail_delta_stride[1] + block;
    if (tail_lse == -infinity()) {
        for (int d = threadIdx.x; d < p.head_dim; d += THREADS) g[d] = 0.0f;
        if (threadIdx.x == 0) *tail_delta = 0.0f;
        return;
    }

    const int column = threadIdx.x % COLUMNS;
    const int group = threadIdx.x / COLUMNS;
    if (group < GROUPS) {
        float sum[8] = {};
        float delta = 0.0f;
        if (column * 8 < p.head_dim) {
            const int row = first + group;
            const T* out =
                p.out + batch * p.out_stride[0] + head * p.out_stride[1] + row * p.out_stride[2] + column * 8;
            const T* d_out =
                p.d_out + batch * p.d_out_stride[0] + head * p.d_out_stride[1] + row * p.d_out_stride[2] + column * 8;
            const float* lse = p.lse + batch * p.lse_stride[0] + head * p.lse_stride[1] + row;
            // The derivative by the row's own log-sum-exp counts once, in the first column.
            const float* d_lse = nullptr;
            if (p.d_lse != nullptr && column == 0)
                d_lse = p.d_lse + batch * p.d_lse_stride[0] + head * p.d_lse_stride[1] + row;
            for (int left = min(BLOCK_Q, p.seq_q - first) - group; left > 0; left -= GROUPS * BATCH) {
                uint4 loaded[BATCH], d_loaded[BATCH];
                float of_row[BATCH], d_of_row[BATCH];
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    loaded[i] = d_loaded[i] = make_uint4(0, 0, 0, 0);
                    of_row[i] = -infinity();
                    d_of_row[i] = 0.0f;
                    if (i * GROUPS < left) {
                        of_row[i] = __ldg(lse + i * GROUPS);
                        loaded[i] = __ldg(reinterpret_cast<const uint4*>(out));
                        d_loaded[i] = __ldg(reinterpret_cast<const uint4*>(d_out));
                        if (d_lse != nullptr) d_of_row[i] = __ldg(d_lse + i * GROUPS);
                    }
                    out += GROUPS * p.out_stride[2];
                    d_out += GROUPS * p.d_out_stride[2];
                }
                lse += GROUPS * BATCH;
                if (d_lse != nullptr) d_lse += GROUPS * BATCH;
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    const T* elements = reinterpret_cast<const T*>(&loaded[i]);
                    const T* d_elements = reinterpret_cast<const T*>(&d_loaded[i]);
                    // A row without a key gets nothing, where the difference would be infinite. What an alpha of 0
                    // leaves out may be no number.
                    const float alpha =
                        of_row[i] == -infinity() ? 0.0f : exp2_approx((tail_lse - of_row[i]) * LOG2_E);
                    if (alpha == 0.0f) continue;
                    float product = -d_of_row[i];
#pragma unroll
                    for (int c = 0; c < 8; ++c) {
                        const float d_element = static_cast<float>(d_elements[c]);
                        product = fmaf(static_cast<float>(elements[c]), d_element, product);
                        sum[c] = fmaf(alpha, d_element, sum[c]);
                    }
                    delta = fmaf(alpha, product, delta);
                }
            }
        }
        float4* slot = reinterpret_cast<float4*>(partial + group * D + column * 8);
        slot[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        slot[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
        partial_delta[group * COLUMNS + column] = delta;
    }
    __syncthreads();

    for (int d = threadIdx.x; d < p.head_dim; d += THREADS) {
        float total = partial[d];
        for (int i = 1; i < GROUPS; ++i) total += partial[i * D + d];
        g[d] = total;
    }
    // The first warp adds up what each of its lanes has added up.
    if (threadIdx.x < 32) {
        float total = 0.0f;
        for (int i = threadIdx.x; i < GROUPS * COLUMNS; i += 32) total += partial_delta[i];
        total = warp_sum(total);
        if (threadIdx.x == 0) *tail_delta = total;
    }
}
