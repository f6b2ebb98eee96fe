// The rows of a head by falling length: whoever works through rows of uneven length begins with the longest.
// Needs warp.cuh, and ORDER_BINS and ORDER_WORDS of a declaration that includes lib/row_order.rs.
#pragma once

/// Writes the numbers of `rows` rows to `order`, those with more blocks first. Lengths that share one of the bins, as equal
/// ones do, come in any order. The whole thread block calls it; `bins`: ORDER_WORDS words of shared memory.
__device__ __forceinline__ void order_rows(const int* counts, const int* full_counts, int rows, int longest, int* bins,
                                           int* order) {
    // A bin for each length where there are so many. In f32, which is monotone too, and nearly right: a division of 64 bits is a
    // call, and so is an exact one.
    const auto bin_of = [&](int row) {
        // Past the L1: other thread blocks have written them.
        const int length = max(__ldcg(counts + row), 0);
        const int full = full_counts == nullptr ? 0 : max(__ldcg(full_counts + row), 0);
        const float blocks = static_cast<float>(length) + static_cast<float>(full);
        const int bin = static_cast<int>(__fdividef((blocks + 0.5f) * ORDER_BINS, longest + 1.0f));
        const int place = ORDER_BINS - 1 - min(bin, ORDER_BINS - 1);
        return place + place / 32;
    };
    for (int i = threadIdx.x; i < ORDER_WORDS; i += THREADS) bins[i] = 0;
    __syncthreads();
    for (int row = threadIdx.x; row < rows; row += THREADS) atomicAdd(bins + bin_of(row), 1);
    __syncthreads();
    if (threadIdx.x < 32) {
        constexpr int OF_LANE = ORDER_BINS / 32;
        int* mine = bins + threadIdx.x * (OF_LANE + OF_LANE / 32);
        int count = 0;
        for (int i = 0; i < OF_LANE; ++i) count += mine[i];
        int place = sum_before(count, threadIdx.x);
        for (int i = 0; i < OF_LANE; ++i) {
            const int here = mine[i];
            mine[i] = place;
            place += here;
        }
    }
    __syncthreads();
    for (int row = threadIdx.x; row < rows; row += THREADS) {
        // Counts that somebody changes meanwhile make no order, but nothing is written beside it.
        const int place = atomicAdd(bins + bin_of(row), 1);
        if (place < rows) order[place] = row;
    }
}

/// As `order_rows`, for kernels whose grid has heads as its second dimension: the last of a head's `blocks` thread blocks to come here
/// has all its counts before it, and orders its rows. `finished` counts them, and is 0 again afterwards.
__device__ __forceinline__ void order_when_last(int* finished, int blocks, const int* counts, const int* full_counts, int rows, int longest,
                                                int* bins, int* order) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) bins[0] = atomicAdd(finished, 1);
    __syncthreads();
    const bool last = bins[0] + 1 == blocks;
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (threadIdx.x == 0) *finished = 0;
    order_rows(counts, full_counts, rows, longest, bins, order);
}

/// The same for kernels that make the lists of query blocks.
template <typename Arguments>
__device__ __forceinline__ void order_query_blocks_when_last(const Arguments& p, int* bins) {
    const long long head = blockIdx.y, batch = blockIdx.z;
    const auto at = [&](const long long* stride) { return batch * stride[0] + head * stride[1]; };
    const int* full_counts = p.full_kv_counts == nullptr ? nullptr : p.full_kv_counts + at(p.full_kv_counts_stride);
    order_when_last(p.finished + batch * p.finished_stride[0] + head, gridDim.x, p.kv_counts + at(p.kv_counts_stride), full_counts, p.q_blocks,
                    p.kv_blocks, bins, p.row_order + at(p.row_order_stride));
}
