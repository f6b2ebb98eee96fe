// What the lanes of a warp do together, always in the same order: the same inputs give the same bits.
#pragma once

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

/// The sum over the lanes below this one.
__device__ __forceinline__ unsigned sum_before(unsigned x, int lane) {
    unsigned sum = x;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const unsigned below = __shfl_up_sync(WHOLE_WARP, sum, offset);
        sum += lane >= offset ? below : 0;
    }
    return sum - x;
}

/// Rows of bits turned: bit r of lane b's result is bit b of lane r's word. Halves of ever smaller squares change places.
__device__ __forceinline__ unsigned turned(unsigned word, int lane) {
    unsigned low = 0x0000ffffu;  // the left half of each square
#pragma unroll
    for (int side = 16; side > 0; side /= 2, low ^= low << side) {
        const unsigned other = __shfl_xor_sync(WHOLE_WARP, word, side);
        word = lane & side ? (word & ~low) | (other >> side & low) : (word & low) | (other & low) << side;
    }
    return word;
}
