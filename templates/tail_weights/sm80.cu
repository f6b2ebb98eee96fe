// Weights of a row tail's entries: a thread block has a query block, of which each warp takes SECTION entries at a time, two for a lane.
<% include "lib/warp.cuh" %>
<% include "lib/math.cuh" %>
<% include "lib/block_bits.cuh" %>
<% include "lib/tail_entries.cuh" %>

static_assert(THREADS == 32 * WARPS && SECTION == 64);

/// What is known of the blocks of a query block.
struct Row {
    const int* dropped;
    const int* whole;  // null, where all blocks are that are not dropped
    int blocks, block_kv, seq_kv;

    /// Whether runs lie within a word each, so that nothing of an entry is in a second one.
    bool fits;

    /// A word of `bits`, of which the blocks from `first` up to `end` count.
    __device__ __forceinline__ static unsigned word_of(unsigned bits, int word, int first, int end) {
        const long long start = 32LL * word;
        return bits & bits_below(end - start) & ~bits_below(first - start);
    }

    __device__ __forceinline__ static unsigned ones(int count) { return 0xffffffffu >> (32 - count); }

    /// Keys of the dropped blocks from `first` up to `end`.
    __device__ __forceinline__ int keys(int first, int end) const {
        const int missing = block_kv - keys_of(end - 1, block_kv, seq_kv);
        if (fits) {
            const unsigned bits = static_cast<unsigned>(__ldg(dropped + first / 32)) >> first % 32 & ones(end - first);
            return __popc(bits) * block_kv - (bits >> (end - 1 - first) & 1 ? missing : 0);
        }
        int found = 0;
        bool is_last_dropped = false;
        for (int word = first / 32; word <= (end - 1) / 32; ++word) {
            const unsigned bits = word_of(__ldg(dropped + word), word, first, end);
            found += __popc(bits);
            is_last_dropped = bits >> (end - 1) % 32 & 1;
        }
        return found * block_kv - (is_last_dropped ? missing : 0);
    }

    /// Whether the queries may attend to all keys of the blocks from `first` up to `end`.
    __device__ __forceinline__ bool is_whole(int first, int end) const {
        if (whole == nullptr) return true;
        if (fits) return (~(__ldg(dropped + first / 32) | __ldg(whole + first / 32)) >> first % 32 & ones(end - first)) == 0;
        for (int word = first / 32; word <= (end - 1) / 32; ++word)
            if (word_of(~(__ldg(dropped + word) | __ldg(whole + word)), word, first, end) != 0) return false;
        return true;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, q = blockIdx.x;
    const long long head = blockIdx.y, batch = blockIdx.z;
    const auto at = [&](const long long* stride) { return batch * stride[0] + head * stride[1] + q * stride[2]; };
    // There are bits of as many blocks as the rows have; `blocks` is a caller's number.
    const int blocks = static_cast<int>(min(static_cast<long long>(max(p.blocks, 0)), 32LL * p.words));
    const int run = max(p.run, 1);
    const Row row{p.dropped + at(p.dropped_stride), p.whole == nullptr ? nullptr : p.whole + at(p.whole_stride), blocks,
                  p.block_kv, p.seq_kv, 32 % run == 0};
    float* weights = p.weights + at(p.weights_stride);
    int* pieces = p.pieces + at(p.pieces_stride);

    __shared__ unsigned found[WARPS];  // bits of the pieces of a word, those that each warp has looked at
    const int count = (p.tail_keys - 1) / SECTION + 1;
    for (int first = 0; first < count; first += 32) {
        unsigned bits = 0;
        for (int piece = first + warp; piece < min(first + 32, count); piece += WARPS) {
            bool any = false;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const unsigned place = static_cast<unsigned>(piece) * SECTION + 32 * half + lane;
                if (place >= p.tail_keys) continue;
                const TailEntry entry(static_cast<int>(place), blocks, run);
                int keys = 0;
                if (entry.count > 0) {
                    const int of_run = entry.is_run ? entry.first : entry.first / run * run;
                    const int end = of_run + min(run, blocks - of_run);
                    // A run has one mean or its blocks have their own.
                    if (row.is_whole(of_run, end) == entry.is_run) keys = row.keys(entry.first, entry.first + entry.count);
                }
                weights[place] = keys > 0 ? __logf(static_cast<float>(keys)) : -infinity();
                any |= keys > 0;
            }
            if (__any_sync(WHOLE_WARP, any)) bits |= 1u << piece % 32;
        }
        if (lane == 0) found[warp] = bits;
        __syncthreads();
        if (threadIdx.x == 0) {
#pragma unroll
            for (int i = 1; i < WARPS; ++i) bits |= found[i];
            pieces[first / 32] = static_cast<int>(bits);
        }
        __syncthreads();
    }
}
