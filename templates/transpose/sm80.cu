// Transposed index: one thread block lists 32 columns of the keep map, one a lane.
//
// Each warp takes a run of rows: it counts what the run adds to each column, learns from the other warps where its
// part of each list begins, and reads the run again (from cache by now) to write it. Ascending without a sort.
<% include "lib/block_class.cuh" %>

static_assert(THREADS == 32 * WARPS);

constexpr int BATCH = 8;  // rows read before any is used

extern "C" __global__ void __launch_bounds__(THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    int* counts = reinterpret_cast<int*>(smem);  // [WARPS][32]
    int* full_counts = counts + THREADS;

    const long long head = blockIdx.y, batch = blockIdx.z;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_kv = blockIdx.x * 32;
    const int kv = first_kv + lane;
    const bool exists = kv < p.kv_blocks;
    const bool split = p.full_q_counts != nullptr && p.full_q_indices != nullptr;
    const int run = (p.q_blocks + WARPS - 1) / WARPS;
    const int begin = min(warp * run, p.q_blocks), end = min(begin + run, p.q_blocks);

    const unsigned char* column = p.keep + batch * p.keep_stride[0] + head * p.keep_stride[1] + kv;
    int* lists = p.q_indices + batch * p.q_indices_stride[0] + head * p.q_indices_stride[1];
    int* full_lists = nullptr;
    if (split) {
        full_lists = p.full_q_indices + batch * p.full_q_indices_stride[0] + head * p.full_q_indices_stride[1];
    }

    // Calls visit(q, entry) for the run's rows in order.
    const auto walk = [&](auto visit) {
        if (!exists) return;
        for (int first = begin; first < end; first += BATCH) {
            unsigned char entries[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                entries[i] = first + i < end ? __ldg(column + (first + i) * p.keep_stride[2]) : EMPTY;
            }
#pragma unroll
            for (int i = 0; i < BATCH; ++i) visit(first + i, entries[i]);
        }
    };

    int count = 0, full_count = 0;
    walk([&](int, unsigned char entry) {
        count += entry == PARTIAL;
        full_count += entry == FULL;
    });
    counts[threadIdx.x] = count;
    full_counts[threadIdx.x] = full_count;
    __syncthreads();

    int place = 0, full_place = 0;
    for (int i = 0; i < warp; ++i) {
        place += counts[i * 32 + lane];
        full_place += full_counts[i * 32 + lane];
    }
    int* list = lists + kv * p.q_indices_stride[2];
    int* full_list = split ? full_lists + kv * p.full_q_indices_stride[2] : nullptr;
    walk([&](int q, unsigned char entry) {
        if (entry == PARTIAL) list[place++] = q;
        if (split && entry == FULL) full_list[full_place++] = q;
    });

    // The last warp ends where the lists do.
    __syncthreads();
    if (warp == WARPS - 1) {
        counts[lane] = place;
        full_counts[lane] = full_place;
        if (exists) {
            p.q_counts[batch * p.q_counts_stride[0] + head * p.q_counts_stride[1] + kv] = place;
            if (split) {
                p.full_q_counts[batch * p.full_q_counts_stride[0] + head * p.full_q_counts_stride[1] + kv] = full_place;
            }
        }
    }
    __syncthreads();
    for (int i = warp; i < 32 && first_kv + i < p.kv_blocks; i += WARPS) {
        int* tail = lists + (first_kv + i) * p.q_indices_stride[2];
        for (int q = counts[i] + lane; q < p.q_blocks; q += 32) tail[q] = 0;
        if (!split) continue;
        int* full_tail = full_lists + (first_kv + i) * p.full_q_indices_stride[2];
        for (int q = full_counts[i] + lane; q < p.q_blocks; q += 32) full_tail[q] = 0;
    }
}
