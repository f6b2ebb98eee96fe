// Block means: one thread block sums one run of rows, of the queries or of the keys.
//
// A thread owns a column of 8 elements and every GROUPS-th row. Its loads are issued in batches before any is used,
// because the kernel has nothing to do but wait for memory.

constexpr int COLUMNS = D / 8;              // 16-byte pieces of a row
constexpr int GROUPS = THREADS / COLUMNS;   // rows read at once; threads left over (D = 96) idle

static_assert(D % 8 == 0 && GROUPS >= 1 && 4 * GROUPS * D <= SMEM_BYTES);

/// The mean of `rows` rows, of which there are at most BLOCK.
template <int BLOCK>
__device__ __forceinline__ void pool_run(const T* x, long long stride, int rows, int width, float* mean, float* partial) {
    constexpr int ROWS = (BLOCK + GROUPS - 1) / GROUPS;  // of a thread
    constexpr int BATCH = ROWS < 8 ? ROWS : 8;           // loads in flight
    const int column = threadIdx.x % COLUMNS;
    const int group = threadIdx.x / COLUMNS;

    if (group < GROUPS && column * 8 < width) {
        const T* source = x + group * stride + column * 8;
        float sum[8] = {};
        for (int left = rows - group; left > 0; left -= GROUPS * BATCH) {
            uint4 loaded[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                loaded[i] = make_uint4(0, 0, 0, 0);
                if (i * GROUPS < left) loaded[i] = __ldg(reinterpret_cast<const uint4*>(source));
                source += GROUPS * stride;
            }
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                const T* elements = reinterpret_cast<const T*>(&loaded[i]);
#pragma unroll
                for (int c = 0; c < 8; ++c) sum[c] += static_cast<float>(elements[c]);
            }
        }
        float4* slot = reinterpret_cast<float4*>(partial + group * D + column * 8);
        slot[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        slot[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
    }
    __syncthreads();

    for (int d = threadIdx.x; d < width; d += THREADS) {
        float total = partial[d];
        for (int i = 1; i < GROUPS; ++i) total += partial[i * D + d];
        mean[d] = total / static_cast<float>(rows);
    }
}

// 80 registers hold the loads in flight, and 768 threads of them hide the latency.
extern "C" __global__ void __launch_bounds__(THREADS, 768 / THREADS)
    TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    float* partial = reinterpret_cast<float*>(smem);  // [GROUPS][D]

    const long long batch = blockIdx.y;
    const int runs_of_q = p.q_blocks * p.heads;
    if (blockIdx.x < runs_of_q) {
        const int head = blockIdx.x / p.q_blocks, block = blockIdx.x - head * p.q_blocks;
        if (block == 0 && threadIdx.x == 0 && p.finished != nullptr) p.finished[batch * p.finished_stride[0] + head] = 0;
        pool_run<BLOCK_Q>(p.q + batch * p.q_stride[0] + head * p.q_stride[1] +
                              static_cast<long long>(block) * BLOCK_Q * p.q_stride[2],
                          p.q_stride[2], min(BLOCK_Q, p.seq_q - block * BLOCK_Q), p.head_dim,
                          p.q_mean + batch * p.q_mean_stride[0] + head * p.q_mean_stride[1] + block * p.q_mean_stride[2],
                          partial);
    } else {
        const int run = blockIdx.x - runs_of_q;
        const int head = run / p.kv_blocks, block = run - head * p.kv_blocks;
        pool_run<BLOCK_KV>(p.k + batch * p.k_stride[0] + head * p.k_stride[1] +
                               static_cast<long long>(block) * BLOCK_KV * p.k_stride[2],
                           p.k_stride[2], min(BLOCK_KV, p.seq_kv - block * BLOCK_KV), p.head_dim,
                           p.k_mean + batch * p.k_mean_stride[0] + head * p.k_mean_stride[1] + block * p.k_mean_stride[2],
                           partial);
    }
}
