// The blocks that a mask drops: a warp takes a row, 32 words at a time, of which each lane has one.
<% include "lib/warp.cuh" %>
<% include "lib/block_bits.cuh" %>
<% include "lib/block_class.cuh" %>

static_assert(THREADS == 32 * WARPS);

extern "C" __global__ void __launch_bounds__(THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    const int lane = threadIdx.x % 32;
    const int row = blockIdx.x * WARPS + threadIdx.x / 32;
    const long long head = blockIdx.y, batch = blockIdx.z;
    if (row >= p.q_blocks) return;
    const auto at = [&](const long long* stride) { return batch * stride[0] + head * stride[1] + row * stride[2]; };
    const int* keep = p.keep + at(p.keep_stride);
    const int* full_keep = p.full_keep == nullptr ? nullptr : p.full_keep + at(p.full_keep_stride);
    const unsigned char* classes = p.classes == nullptr ? nullptr : p.classes + at(p.classes_stride);
    int* dropped = p.dropped + at(p.dropped_stride);
    // Classes are there for as many blocks as they have; `blocks` is a caller's number.
    const long long blocks = classes == nullptr ? p.blocks : min(p.blocks, p.kv_blocks);

    for (long long first = 0; first < p.words; first += 32) {
        const long long word = first + lane;
        unsigned bits = bits_below(blocks - 32 * word);
        if (classes != nullptr) {
            unsigned full = 0;
            // A word's classes are one load of the warp; several are under way at once.
#pragma unroll 8
            for (int i = 0; i < 32; ++i) {
                const long long block = 32 * (first + i) + lane;
                const unsigned found = __ballot_sync(WHOLE_WARP, block < blocks && __ldg(classes + block) == FULL);
                if (lane == i) full = found;
            }
            bits &= full;
        }
        if (word < p.words) {
            unsigned kept = static_cast<unsigned>(__ldg(keep + word));
            if (full_keep != nullptr) kept |= static_cast<unsigned>(__ldg(full_keep + word));
            dropped[word] = static_cast<int>(bits & ~kept);
        }
    }
}
