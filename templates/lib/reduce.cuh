// Reductions over a warp and over a thread block, always in the same order: the same inputs give the same bits.

constexpr unsigned WHOLE_WARP = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, offset));
    return x;
}

/// How many lanes below this one have their bit set.
__device__ __forceinline__ unsigned lanes_before(unsigned ballot, int lane) {
    return __popc(ballot & ((1u << lane) - 1));
}

/// Trades one value a warp within a thread block of COUNT warps. Every thread of the block makes the same calls.
///
/// Two sets of slots are used in turn, so that one barrier a trade is enough: a set is written again only after the
/// barrier of the trade in between, which nobody passes before everybody has read the set.
template <int COUNT>
struct WarpTrade {
    static constexpr int BYTES = 2 * COUNT * 8;

    unsigned char* slots;  // BYTES of shared memory, 8-byte aligned
    int warp;
    int turn = 0;

    __device__ __forceinline__ WarpTrade(unsigned char* memory, int warp_index) : slots(memory), warp(warp_index) {}

    /// The values of all warps combined from warp 0 up.
    template <typename Value, typename Combine>
    __device__ __forceinline__ Value reduce(Value of_warp, Combine combine) {
        if constexpr (COUNT == 1) return of_warp;
        const Value* all = publish(of_warp);
        Value result = all[0];
#pragma unroll
        for (int i = 1; i < COUNT; ++i) result = combine(result, all[i]);
        return result;
    }

    template <typename Value>
    __device__ __forceinline__ Value sum(Value of_warp) {
        return reduce(of_warp, [](Value a, Value b) { return a + b; });
    }

    /// The sum over the warps before this one; `total` becomes the sum over all.
    template <typename Value>
    __device__ __forceinline__ Value sum_before(Value of_warp, Value& total) {
        if constexpr (COUNT == 1) {
            total = of_warp;
            return 0;
        }
        const Value* all = publish(of_warp);
        Value before = 0;
        total = 0;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            if (i == warp) before = total;
            total += all[i];
        }
        return before;
    }

  private:
    template <typename Value>
    __device__ __forceinline__ const Value* publish(Value of_warp) {
        static_assert(sizeof(Value) <= 8, "a slot holds 8 bytes");
        Value* set = reinterpret_cast<Value*>(slots + turn * COUNT * 8);
        turn ^= 1;
        if (threadIdx.x % 32 == 0) set[warp] = of_warp;
        __syncthreads();
        return set;
    }
};
