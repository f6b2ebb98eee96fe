// The mean of a run of rows, by one thread block.
//
// A thread owns a column of 8 elements and every GROUPS-th row. Its loads are issued in batches before any is used,
// because the kernels have nothing to do but wait for memory.
#pragma once

constexpr int COLUMNS = D / 8;              // 16-byte pieces of a row
constexpr int GROUPS = THREADS / COLUMNS;   // rows read at once; threads left over (D = 96) idle

static_assert(D % 8 == 0 && GROUPS >= 1 && 4 * GROUPS * D <= SMEM_BYTES);

/// A thread's sums of its column, [GROUPS][D].
__device__ __forceinline__ void store_sums(const float (&sum)[8], float* partial, int group, int column) {
    float4* slot = reinterpret_cast<float4*>(partial + group * D + column * 8);
    slot[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    slot[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
}

/// The mean, once every thread has stored its sums.
__device__ __forceinline__ void write_mean(const float* partial, int rows, int width, float* mean) {
    __syncthreads();
    for (int d = threadIdx.x; d < width; d += THREADS) {
        float total = partial[d];
        for (int i = 1; i < GROUPS; ++i) total += partial[i * D + d];
        mean[d] = total / static_cast<float>(rows);
    }
}

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
        store_sums(sum, partial, group, column);
    }
    write_mean(partial, rows, width, mean);
}
