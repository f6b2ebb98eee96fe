// Block means: one thread block sums one run of BLOCK rows.
//
// A thread owns a column of 8 elements and every GROUPS-th row. Its loads are issued in batches before any is used,
// because the kernel has nothing to do but wait for memory.

constexpr int COLUMNS = D / 8;              // 16-byte pieces of a row
constexpr int GROUPS = THREADS / COLUMNS;   // rows read at once; threads left over (D = 96) idle
constexpr int ROWS = (BLOCK + GROUPS - 1) / GROUPS;  // rows of a thread
constexpr int BATCH = ROWS < 8 ? ROWS : 8;  // loads in flight

static_assert(D % 8 == 0 && GROUPS >= 1);

// 80 registers hold the loads in flight, and 768 threads of them hide the latency.
extern "C" __global__ void __launch_bounds__(THREADS, 768 / THREADS)
    TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    float* partial = reinterpret_cast<float*>(smem);  // [GROUPS][D]

    const int block = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
    const int column = threadIdx.x % COLUMNS;
    const int group = threadIdx.x / COLUMNS;
    const int rows = min(BLOCK, p.seq - block * BLOCK);

    if (group < GROUPS && column * 8 < p.head_dim) {
        const long long step = GROUPS * p.x_stride[2];
        const T* source = p.x + batch * p.x_stride[0] + head * p.x_stride[1] +
                          (static_cast<long long>(block) * BLOCK + group) * p.x_stride[2] + column * 8;
        float sum[8] = {};
        for (int left = rows - group; left > 0; left -= GROUPS * BATCH) {
            uint4 loaded[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                loaded[i] = make_uint4(0, 0, 0, 0);
                if (i * GROUPS < left) loaded[i] = __ldg(reinterpret_cast<const uint4*>(source));
                source += step;
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

    float* mean = p.mean + batch * p.mean_stride[0] + head * p.mean_stride[1] + block * p.mean_stride[2];
    for (int d = threadIdx.x; d < p.head_dim; d += THREADS) {
        float total = partial[d];
        for (int i = 1; i < GROUPS; ++i) total += partial[i * D + d];
        mean[d] = total / static_cast<float>(rows);
    }
}
