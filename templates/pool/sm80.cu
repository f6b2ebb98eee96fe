// Block means: one thread block sums one run of rows, of the queries or of the keys.
<% include "lib/pool_run.cuh" %>

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
