// Rows of bits, one for each key block: bit j % 32 of word j / 32 is that of block j.
//
// A caller's rows may hold anything past the last block, so whoever reads a word keeps the bits of the blocks that
// exist.
#pragma once

/// The bits of a word below `count`: none where it is 0 or less, all from 32 on.
__device__ __forceinline__ unsigned bits_below(long long count) {
    return count >= 32 ? 0xffffffffu : count <= 0 ? 0u : (1u << static_cast<unsigned>(count)) - 1;
}
