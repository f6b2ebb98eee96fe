// The key blocks of one query block, as a block mask lists them.
#pragma once

/// This thread block's place in a [q_blocks, heads, batch] grid, read anew at each call. What is computed from
/// blockIdx would be kept in registers across a whole loop; from this it is made where it is (rarely) needed.
__device__ __forceinline__ dim3 block_place([[maybe_unused]] const Params& p) {
    dim3 place;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(place.x));
    asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(place.y));
    asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(place.z));
#ifdef TILEWRIGHT_FOLDED
    place = dim3(place.y, place.x % blocks_along_y(p), place.x / blocks_along_y(p));
#endif
    return place;
}

/// Tile number `tile` as (q_block, head, batch): one head's tiles run side by side, so that its keys stay in the L2 cache.
__device__ __forceinline__ dim3 row_of(const Params& p, int tile) {
    const int rest = tile / p.q_blocks;
    return dim3(tile - rest * p.q_blocks, rest % p.heads, rest / p.heads);
}

/// Blocks whose elements the mask function still decides come first, whole blocks after them. Each lane of a warp holds
/// one number of a window of 32 places, so that the next number costs a shuffle and no address.
///
/// The lists are a caller's: a count past its list is cut, and a number that is no block reads as block `kv_blocks`,
/// whose keys all lie past the end and so are never loaded and always masked.
struct KeyBlocks {
    /// Blocks in this row's lists; meant to live in shared memory.
    struct Counts {
        int partial;
        int all;
    };
    int window;

    /// Of the row (q_block, head, batch).
    static __device__ __forceinline__ Counts counts(const Params& p, dim3 row) {
        Counts found;
        found.partial = length(p.kv_counts, p.kv_counts_stride, row, p.max_blocks);
        found.all = found.partial;
        if (p.full_kv_counts && p.full_kv_indices)
            found.all += length(p.full_kv_counts, p.full_kv_counts_stride, row, p.max_full_blocks);
        return found;
    }

    /// Makes the window start at `place` of the lists of row `row()`; places past the last read as no block.
    template <typename Row>
    __device__ __forceinline__ void move_window(const Params& params, const Counts& counts, int place, Row row) {
        // Read through an address the compiler cannot see through, or it keeps the lists' strides in registers.
        const Params* hidden = &params;
        asm volatile("" : "+l"(hidden));
        const Params& p = *hidden;
        place += thread_place() % 32;
        window = p.kv_blocks;
        if (place >= counts.all) return;
        const int block = place < counts.partial
                              ? entry(p.kv_indices, p.kv_indices_stride, row(), place)
                              : entry(p.full_kv_indices, p.full_kv_indices_stride, row(), place - counts.partial);
        if (static_cast<unsigned>(block) < static_cast<unsigned>(p.kv_blocks)) window = block;
    }

    /// The block number at `place`, which the window must hold.
    __device__ __forceinline__ int at(int place) const { return __shfl_sync(0xffffffffu, window, place % 32); }

   private:
    static __device__ __forceinline__ int length(const int* counts, const long long* stride, dim3 row, int width) {
        return min(max(__ldg(counts + row.z * stride[0] + row.y * stride[1] + row.x), 0), width);
    }
    static __device__ __forceinline__ int entry(const int* indices, const long long* stride, dim3 row, int place) {
        return __ldg(indices + row.z * stride[0] + row.y * stride[1] + row.x * stride[2] + place);
    }
};
