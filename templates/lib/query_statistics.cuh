// What the backward kernels for Hopper know of queries, brought to shared memory by the warp that copies. After thread.cuh and
// math.cuh.
#pragma once

/// lse in base-2 exponent units, and delta. A query that attends to nothing, or does not exist, has an lse of +inf: its weights
/// become 0.
template <int QUERIES>
struct Statistics {
    float lse[QUERIES], delta[QUERIES];
};

/// What a lane of the copying warp knows of every 32nd query, as it is in memory.
template <int QUERIES>
struct LaneStatistics {
    float lse[QUERIES / 32], delta[QUERIES / 32];

    /// Starts all the loads, of queries `first` on. One past the end reads the last.
    template <typename Index>
    __device__ __forceinline__ void load(const Params& p, Index batch, Index head, int first) {
        const float* all_lse = p.lse + batch * p.lse_stride[0] + head * p.lse_stride[1];
        const float* all_delta = p.delta + batch * p.delta_stride[0] + head * p.delta_stride[1];
#pragma unroll
        for (int i = 0; i < QUERIES / 32; ++i) {
            const int query = min(first + i * 32 + thread_place() % 32, p.seq_q - 1);
            lse[i] = __ldg(all_lse + query);
            delta[i] = __ldg(all_delta + query);
        }
    }

    /// Writes to the Statistics at `to`, at `place(query)`, what is known of the first `queries`, and of others that there are none.
    /// Whether one of this lane's attends to nothing.
    template <typename Place>
    __device__ __forceinline__ bool store(unsigned to, int queries, Place place) const {
        bool any_empty = false;
#pragma unroll
        for (int i = 0; i < QUERIES / 32; ++i) {
            const int query = i * 32 + thread_place() % 32;
            const bool exists = query < queries, empty = lse[i] == -infinity();
            const unsigned at = to + place(query) * sizeof(float);
            store_shared(at, __float_as_int(exists && !empty ? lse[i] * LOG2_E : infinity()));
            store_shared(at + sizeof(Statistics<QUERIES>::lse), __float_as_int(exists ? delta[i] : 0.0f));
            any_empty |= exists && empty;
        }
        return any_empty;
    }
};
