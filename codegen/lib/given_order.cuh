// Orders that a caller gives: of rows, of key blocks.
#pragma once

/// The number at place `place` of an order of `count` numbers. One that is none must not become an address.
__device__ __forceinline__ int number_at(const int* order, int place, int count) {
    return min(max(__ldg(order + place), 0), count - 1);
}
