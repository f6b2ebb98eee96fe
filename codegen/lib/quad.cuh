// What the four lanes that share a row of an accumulator do together.
#pragma once

/// Maximum and sum over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// Four registers of each lane of a quad, transposed: lane i gets register i of all four, in the order of the lanes.
__device__ __forceinline__ uint4 transpose_quad(unsigned (&x)[4]) {
    const unsigned lane = thread_place();
    const bool upper = lane & 2, odd = lane & 1;
    const unsigned far0 = __shfl_xor_sync(0xffffffffu, upper ? x[0] : x[2], 2);
    const unsigned far1 = __shfl_xor_sync(0xffffffffu, upper ? x[1] : x[3], 2);
    if (upper) {
        x[0] = far0;
        x[1] = far1;
    } else {
        x[2] = far0;
        x[3] = far1;
    }
    const unsigned near0 = __shfl_xor_sync(0xffffffffu, odd ? x[0] : x[1], 1);
    const unsigned near1 = __shfl_xor_sync(0xffffffffu, odd ? x[2] : x[3], 1);
    return odd ? make_uint4(near0, x[1], near1, x[3]) : make_uint4(x[0], near0, x[2], near1);
}
