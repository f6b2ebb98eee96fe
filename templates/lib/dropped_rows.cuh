// What the thread block's query blocks drop of the key blocks that pass by.
#pragma once

/// Bits of `TAKEN` key blocks, on their way from memory: of a lane's rows, those `lane`, `lane` + 32 … of the thread block.
struct DroppedRows {
    const int* dropped;
    long long stride;
    int rows, blocks;
    unsigned found[WORDS];

    __device__ __forceinline__ void begin(int first) {
#pragma unroll
        for (int word = 0; word < WORDS; ++word) {
            found[word] = 0;
            if (first + 32 * word >= blocks) continue;
#pragma unroll
            for (int row = 0; row < ROWS; row += 32)
                if (row + threadIdx.x % 32 < rows)
                    found[word] |= __ldg(dropped + (row + threadIdx.x % 32) * stride + first / 32 + word);
            found[word] &= bits_below(blocks - first - 32 * word);
        }
    }

    /// Those that any row drops.
    __device__ __forceinline__ void any(unsigned (&wanted)[WORDS]) const {
#pragma unroll
        for (int word = 0; word < WORDS; ++word) wanted[word] = __reduce_or_sync(ALL_LANES, found[word]);
    }

    /// Those of the warp's share, from `first` on, that row `row` drops: 16 bits.
    __device__ __forceinline__ unsigned of_share(int row, int first) const {
        const int begin = first + 16 * warp_share();
        if (row >= rows || begin >= blocks) return 0;
        const unsigned bits = static_cast<unsigned>(__ldg(dropped + row * stride + begin / 32)) >> begin % 32;
        return bits & bits_below(min(16, blocks - begin));
    }
};
