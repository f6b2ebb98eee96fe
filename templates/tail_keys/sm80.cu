// Keys and values of a row tail: a warp writes an entry of both, a lane 8 columns at a time.
<% include "lib/tail_entries.cuh" %>

static_assert(THREADS == 32 * WARPS);

/// 8 columns of the mean over an entry's keys, rounded: of `mean`, rows of blocks.
__device__ __forceinline__ uint4 mean_of(const TailEntry& entry, const Params& p, const float* mean, long long stride) {
    float sum[8] = {};
    const float all = static_cast<float>(keys_of(entry.first + entry.count - 1, p.block_kv, p.seq_kv)) +
                      static_cast<float>(entry.count - 1) * static_cast<float>(p.block_kv);
#pragma unroll 4
    for (int i = 0; i < entry.count; ++i) {
        const int block = entry.first + i;
        const float4* row = reinterpret_cast<const float4*>(mean + block * stride);
        const float4 low = __ldg(row), high = __ldg(row + 1);
        const float share = static_cast<float>(keys_of(block, p.block_kv, p.seq_kv)) / all;
        const float columns[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int c = 0; c < 8; ++c) sum[c] = fmaf(share, columns[c], sum[c]);
    }
    uint4 packed;
    T* elements = reinterpret_cast<T*>(&packed);
#pragma unroll
    for (int c = 0; c < 8; ++c) elements[c] = static_cast<T>(sum[c]);
    return packed;
}

/// Whether any of 8 elements is no number, or infinite.
__device__ __forceinline__ bool has_strange(const uint4& packed) {
    const T* elements = reinterpret_cast<const T*>(&packed);
    bool strange = false;
#pragma unroll
    for (int c = 0; c < 8; ++c) strange |= !(fabsf(static_cast<float>(elements[c])) < __int_as_float(0x7f800000));
    return strange;
}

/// 8 elements that are no numbers, of either half type.
__device__ __forceinline__ uint4 all_nan() { return make_uint4(0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu, 0x7fff7fffu); }

extern "C" __global__ void __launch_bounds__(THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    const int lane = threadIdx.x % 32;
    const int place = blockIdx.x * WARPS + threadIdx.x / 32;
    const long long head = blockIdx.y, batch = blockIdx.z;
    if (place >= p.tail_keys) return;
    const TailEntry entry(place, p.kv_blocks, max(p.run, 1));
    const auto place_of = [&](T* tail, const long long* stride) {
        return tail + batch * stride[0] + head * stride[1] + place * stride[2];
    };
    const auto mean_at = [&](const float* mean, const long long* stride, int column) {
        return mean_of(entry, p, mean + batch * stride[0] + head * stride[1] + column, stride[2]);
    };
    T* keys = place_of(p.tail_k, p.tail_k_stride);
    T* values = place_of(p.tail_v, p.tail_v_stride);
    bool strange = false;
    for (int column = 8 * lane; column < p.value_dim; column += 8 * 32) {
        const uint4 packed = mean_at(p.v_mean, p.v_mean_stride, column);
        strange |= has_strange(packed);
        *reinterpret_cast<uint4*>(values + column) = packed;
    }
    // A product with a weight of 0 would make a NaN of what no number is, where nobody attends to it. As a key it is found out by who does.
    strange = __any_sync(0xffffffffu, strange);
    if (strange)
        for (int column = 8 * lane; column < p.value_dim; column += 8 * 32)
            *reinterpret_cast<uint4*>(values + column) = make_uint4(0, 0, 0, 0);
    for (int column = 8 * lane; column < p.head_dim; column += 8 * 32)
        *reinterpret_cast<uint4*>(keys + column) = strange ? all_nan() : mean_at(p.k_mean, p.k_mean_stride, column);
}
