// What the backward kernels for Hopper know of queries, brought to shared memory by a warp that does not compute. After thread.cuh
// and math.cuh.
#pragma once

/// lse in base-2 exponent units, and what a score's gradient is less: delta, or the gradient of lse where delta is still to be made.
/// A query that attends to nothing, or does not exist, has an lse of +inf: its weights become 0.
template <int QUERIES>
struct Statistics {
    float lse[QUERIES], less[QUERIES];
};

/// What a lane of such a warp knows of every 32nd query, as it is in memory.
template <int QUERIES>
struct LaneStatistics {
    float lse[QUERIES / 32], less[QUERIES / 32];

    /// Starts all the loads, of queries `first` on of the `queries` of two rows; a second that is null reads as zeros. A query past
    /// the end reads the last.
    __device__ __forceinline__ void load(const float* of_lse, const float* of_less, int queries, int first) {
#pragma unroll
        for (int i = 0; i < QUERIES / 32; ++i) {
            const int query = min(first + i * 32 + thread_place() % 32, queries - 1);
            lse[i] = __ldg(of_lse + query);
            less[i] = of_less ? __ldg(of_less + query) : 0.0f;
        }
    }

    /// Writes each lse to `place(query)` of those at `to`; past the first `queries` there are none. Whether one of this lane's attends to
    /// nothing.
    template <typename Place>
    __device__ __forceinline__ bool store_lse(unsigned to, int queries, Place place) const {
        bool any_empty = false;
#pragma unroll
        for (int i = 0; i < QUERIES / 32; ++i) {
            const int query = i * 32 + thread_place() % 32;
            const bool exists = query < queries, empty = lse[i] == -infinity();
            store_shared(to + place(query) * sizeof(float), __float_as_int(exists && !empty ? lse[i] * LOG2_E : infinity()));
            any_empty |= exists && empty;
        }
        return any_empty;
    }

    /// The same of what a score's gradient is less.
    template <typename Place>
    __device__ __forceinline__ void store_less(unsigned to, int queries, Place place) const {
#pragma unroll
        for (int i = 0; i < QUERIES / 32; ++i) {
            const int query = i * 32 + thread_place() % 32;
            store_shared(to + place(query) * sizeof(float), __float_as_int(query < queries ? less[i] : 0.0f));
        }
    }
};
