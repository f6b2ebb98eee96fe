// Block means: one thread block sums one run of rows, of the queries or of the keys.
<% include "lib/pool_run.cuh" %>

<% if constant.FINE > 0 %>
/// The mean of `rows` keys, of which there are at most BLOCK, and to `fine` those of every FINE of them. A thread owns a
/// column of 8 elements and every GROUPS-th run of FINE keys.
template <int BLOCK>
__device__ __forceinline__ void pool_fine(const T* x, long long stride, int rows, int width, float* mean, T* fine,
                                          long long fine_stride, float* partial) {
    constexpr int RUNS = (BLOCK / FINE + GROUPS - 1) / GROUPS;  // of a thread
    constexpr int BATCH = RUNS < 2 ? RUNS : 2;                  // whose loads are in flight
    static_assert(BLOCK % FINE == 0);
    const int column = threadIdx.x % COLUMNS;
    const int group = threadIdx.x / COLUMNS;

    if (group < GROUPS && column * 8 < width) {
        const T* source = x + static_cast<long long>(group) * FINE * stride + column * 8;
        T* to = fine + group * fine_stride + column * 8;
        float sum[8] = {};
        for (int left = rows - group * FINE; left > 0; left -= GROUPS * BATCH * FINE) {
            uint4 loaded[BATCH][FINE];
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
#pragma unroll
                for (int row = 0; row < FINE; ++row) {
                    loaded[i][row] = make_uint4(0, 0, 0, 0);
                    if (i * GROUPS * FINE + row < left)
                        loaded[i][row] = __ldg(reinterpret_cast<const uint4*>(source + (i * GROUPS * FINE + row) * stride));
                }
            source += GROUPS * BATCH * FINE * stride;
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                const int there = min(FINE, left - i * GROUPS * FINE);
                if (there <= 0) break;
                float of_run[8] = {};
#pragma unroll
                for (int row = 0; row < FINE; ++row) {
                    const T* elements = reinterpret_cast<const T*>(&loaded[i][row]);
#pragma unroll
                    for (int c = 0; c < 8; ++c) of_run[c] += static_cast<float>(elements[c]);
                }
                uint4 rounded;
                T* means = reinterpret_cast<T*>(&rounded);
#pragma unroll
                for (int c = 0; c < 8; ++c) {
                    means[c] = static_cast<T>(of_run[c] / static_cast<float>(there));
                    sum[c] += of_run[c];
                }
                *reinterpret_cast<uint4*>(to + i * GROUPS * fine_stride) = rounded;
            }
            to += GROUPS * BATCH * fine_stride;
        }
        store_sums(sum, partial, group, column);
    }
    write_mean(partial, rows, width, mean);
}
<% endif %>

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
<% if constant.FINE > 0 %>
        if (p.k_fine != nullptr) {
            pool_fine<BLOCK_KV>(
                p.k + batch * p.k_stride[0] + head * p.k_stride[1] + static_cast<long long>(block) * BLOCK_KV * p.k_stride[2],
                p.k_stride[2], min(BLOCK_KV, p.seq_kv - block * BLOCK_KV), p.head_dim,
                p.k_mean + batch * p.k_mean_stride[0] + head * p.k_mean_stride[1] + block * p.k_mean_stride[2],
                p.k_fine + batch * p.k_fine_stride[0] + head * p.k_fine_stride[1] +
                    static_cast<long long>(block) * (BLOCK_KV / FINE) * p.k_fine_stride[2],
                p.k_fine_stride[2], partial);
            return;
        }
<% endif %>
        pool_run<BLOCK_KV>(p.k + batch * p.k_stride[0] + head * p.k_stride[1] +
                               static_cast<long long>(block) * BLOCK_KV * p.k_stride[2],
                           p.k_stride[2], min(BLOCK_KV, p.seq_kv - block * BLOCK_KV), p.head_dim,
                           p.k_mean + batch * p.k_mean_stride[0] + head * p.k_mean_stride[1] + block * p.k_mean_stride[2],
                           partial);
    }
}
