// Transposed index: one thread block lists 32 key blocks, whose bits are one word a row.
//
// Each warp takes runs of 32 rows, a row a lane; the 32 x 32 bits are turned, so that lane i then has the rows of key
// block i. Warps count what their runs add to each list, learn from each other where theirs begins, and turn the
// runs again (from cache by now) to write them. Ascending without a sort.
<% include "lib/warp.cuh" %>

<% include "lib/row_order.cuh" %>

static_assert(THREADS == 32 * WARPS && 4 * THREADS <= SMEM_BYTES && 4 * ORDER_WORDS <= SMEM_BYTES);

struct Lists {
    const int* words;  // this word of row 0
    long long stride;  // from row to row
    int* counts;
    int* indices;
    long long indices_stride;
};

constexpr int HELD = 4;  // runs of a warp that stay in registers

/// This lane's word of run `run`.
__device__ __forceinline__ unsigned word_of(const Lists& lists, int run, int rows, int lane) {
    const int row = run * 32 + lane;
    return row < rows ? __ldg(lists.words + row * lists.stride) : 0;
}

__device__ __forceinline__ void list_rows(const Params& p, const Lists& lists, int* before) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_kv = blockIdx.x * 32;
    const bool exists = first_kv + lane < p.kv_blocks;
    const int runs = (p.q_blocks + 31) / 32;
    const int begin = runs * warp / WARPS, end = runs * (warp + 1) / WARPS;

    unsigned held[HELD];
#pragma unroll
    for (int i = 0; i < HELD; ++i) held[i] = begin + i < end ? word_of(lists, begin + i, p.q_blocks, lane) : 0;
    int count = 0;
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
        held[i] = turned(held[i], lane);
        count += __popc(held[i]);
    }
    for (int run = begin + HELD; run < end; ++run)
        count += __popc(turned(word_of(lists, run, p.q_blocks, lane), lane));
    before[threadIdx.x] = count;
    __syncthreads();
    int place = 0, total = 0;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) {
        if (i == warp) place = total;
        total += before[i * 32 + lane];
    }
    if (warp == 0 && exists) lists.counts[first_kv + lane] = total;

    int* list = lists.indices + (first_kv + lane) * lists.indices_stride;
    const auto write = [&](unsigned bits, int run) {
        for (; bits; bits &= bits - 1) list[place++] = run * 32 + __ffs(bits) - 1;
    };
#pragma unroll
    for (int i = 0; i < HELD; ++i) write(exists ? held[i] : 0, begin + i);
    for (int run = begin + HELD; run < end; ++run) {
        const unsigned bits = turned(word_of(lists, run, p.q_blocks, lane), lane);
        write(exists ? bits : 0, run);
    }
    // What is left of each list is one warp's to fill up.
    for (int i = warp; i < 32 && first_kv + i < p.kv_blocks; i += WARPS) {
        int* tail = lists.indices + (first_kv + i) * lists.indices_stride;
        const int all = __shfl_sync(WHOLE_WARP, total, i);
#pragma unroll 4
        for (int q = all + lane; q < p.q_blocks; q += 32) tail[q] = 0;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    int* before = reinterpret_cast<int*>(smem);  // [WARPS][32]

    const long long head = blockIdx.y, batch = blockIdx.z;
    const auto at = [&](const long long* stride) { return batch * stride[0] + head * stride[1]; };
    Lists lists;
    lists.words = p.keep + at(p.keep_stride) + blockIdx.x;
    lists.stride = p.keep_stride[2];
    lists.counts = p.q_counts + at(p.q_counts_stride);
    lists.indices = p.q_indices + at(p.q_indices_stride);
    lists.indices_stride = p.q_indices_stride[2];
    const bool split = p.full_keep != nullptr && p.full_q_counts != nullptr && p.full_q_indices != nullptr;
#pragma unroll 1
    for (int pass = 0;; ++pass) {
        list_rows(p, lists, before);
        if (pass == 1 || !split) break;
        __syncthreads();
        lists.words = p.full_keep + at(p.full_keep_stride) + blockIdx.x;
        lists.stride = p.full_keep_stride[2];
        lists.counts = p.full_q_counts + at(p.full_q_counts_stride);
        lists.indices = p.full_q_indices + at(p.full_q_indices_stride);
        lists.indices_stride = p.full_q_indices_stride[2];
    }
    if (p.key_order == nullptr || p.finished == nullptr) return;
    order_when_last(p.finished + batch * p.finished_stride[0] + head, gridDim.x, p.q_counts + at(p.q_counts_stride),
                    split ? p.full_q_counts + at(p.full_q_counts_stride) : nullptr, p.kv_blocks, p.q_blocks,
                    reinterpret_cast<int*>(smem), p.key_order + at(p.key_order_stride));
}
