// What a row tail's means give to their blocks: a warp makes a block's gradients, a lane 8 columns at a time.
<% include "lib/tail_entries.cuh" %>

static_assert(THREADS == 32 * WARPS);

/// Adds 8 columns of an entry's gradient, of all parts in their order, `by` times.
__device__ __forceinline__ void add_parts(float (&sum)[8], const T* parts, long long stride, int entry, int entries, int count, float by) {
    float of_entry[8] = {};
#pragma unroll 4
    for (int part = 0; part < count; ++part) {
        const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(parts + (static_cast<long long>(part) * entries + entry) * stride));
        const T* elements = reinterpret_cast<const T*>(&loaded);
#pragma unroll
        for (int c = 0; c < 8; ++c) of_entry[c] += static_cast<float>(elements[c]);
    }
#pragma unroll
    for (int c = 0; c < 8; ++c) sum[c] = fmaf(of_entry[c], by, sum[c]);
}

extern "C" __global__ void __launch_bounds__(THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    const int lane = threadIdx.x % 32;
    const int block = blockIdx.x * WARPS + threadIdx.x / 32;
    const long long head = blockIdx.y, batch = blockIdx.z;
    if (block >= p.kv_blocks) return;
    const int entries = max(p.entries, 1), count = p.part_rows / entries, run = max(p.run, 1);
    // The entry of the block's run, and its own, which begin with a section of theirs.
    const int of_run = block / run;
    const int runs = (p.kv_blocks + run - 1) / run, of_block = (runs + SECTION - 1) / SECTION * SECTION + block;
    const TailEntry entry(of_run, p.kv_blocks, run);
    const float keys_of_block = static_cast<float>(keys_of(block, p.block_kv, p.seq_kv));
    const float keys_of_run = static_cast<float>(keys_of(entry.first + entry.count - 1, p.block_kv, p.seq_kv)) +
                              static_cast<float>(entry.count - 1) * static_cast<float>(p.block_kv);
    const auto write = [&](const T* parts, const long long* from, float* mean, const long long* to, int column) {
        parts += batch * from[0] + head * from[1] + column;
        mean += batch * to[0] + head * to[1] + block * to[2] + column;
        float sum[8] = {};
        if (of_run < entries) add_parts(sum, parts, from[2], of_run, entries, count, 1.0f / keys_of_run);
        if (of_block < entries) add_parts(sum, parts, from[2], of_block, entries, count, 1.0f / keys_of_block);
        reinterpret_cast<float4*>(mean)[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        reinterpret_cast<float4*>(mean)[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
    };
    for (int column = 8 * lane; column < p.head_dim + p.value_dim; column += 8 * 32) {
        if (column < p.head_dim) {
            write(p.dk_parts, p.dk_parts_stride, p.dk_mean, p.dk_mean_stride, column);
        } else {
            write(p.dv_parts, p.dv_parts_stride, p.dv_mean, p.dv_mean_stride, column - p.head_dim);
        }
    }
}
