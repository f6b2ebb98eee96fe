// Block means of the values: one thread block sums one run of rows.
<% include "lib/pool_run.cuh" %>

// 80 registers hold the loads in flight, and 768 threads of them hide the latency.
extern "C" __global__ void __launch_bounds__(THREADS, 768 / THREADS)
    TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    float* partial = reinterpret_cast<float*>(smem);  // [GROUPS][D]

    const long long batch = blockIdx.y;
    const int head = blockIdx.x / p.kv_blocks, block = blockIdx.x - head * p.kv_blocks;
    pool_run<BLOCK_KV>(p.v + batch * p.v_stride[0] + head * p.v_stride[1] +
                           static_cast<long long>(block) * BLOCK_KV * p.v_stride[2],
                       p.v_stride[2], min(BLOCK_KV, p.seq_kv - block * BLOCK_KV), p.head_dim,
                       p.v_mean + batch * p.v_mean_stride[0] + head * p.v_mean_stride[1] + block * p.v_mean_stride[2],
                       partial);
}
