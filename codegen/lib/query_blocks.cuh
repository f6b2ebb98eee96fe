// The query blocks of one key block, as the transposed lists of a block mask name them.
#pragma once

/// The key block that comes at place `place` of a head's.
__device__ __forceinline__ int key_block_at(const Params& p, int place, int kv_head, int batch) {
    if (p.key_order == nullptr) return place;
    return number_at(p.key_order + batch * p.key_order_stride[0] + kv_head * p.key_order_stride[1], place, p.kv_blocks);
}

/// Walks through the lists of every query head that shares a key head, one head after another: blocks whose elements the
/// mask function still decides first, whole blocks after them, STEPS steps of STEP queries each. Every warp walks by itself;
/// each lane holds one number of a window of 32 places of a list.
///
/// The lists are a caller's: a count past its list is cut, and a number that is no block reads as block `q_blocks`, whose
/// queries all lie past the end.
template <int STEP, int STEPS>
struct QueryBlocks {
    /// Some queries of one head, all in one block.
    struct Step {
        int head;   // negative after the last
        int first;  // query
        bool decided;  // whether the mask function decides on elements
    };

    int kv_block, batch;
    int head, end;      // heads left: head to end - 1
    int place;          // steps taken of this head
    int partial, all;   // blocks of this head
    int window;

    __device__ __forceinline__ QueryBlocks(const Params& p, int of_block, int kv_head, int of_batch)
        : kv_block(of_block), batch(of_batch) {
        const int group = p.heads / p.kv_heads;
        head = kv_head * group;
        end = head + group;
        open(p);
    }

    __device__ __forceinline__ Step next(const Params& params) {
        // Read through an address the compiler cannot see through, or it keeps the lists' strides in registers.
        const Params* hidden = &params;
        asm volatile("" : "+l"(hidden));
        const Params& p = *hidden;
        while (place == all * STEPS) {
            if (++head >= end) return {-1, 0, false};
            open(p);
        }
        if (place % (32 * STEPS) == 0) move_window(p, place / STEPS);
        const int block = __shfl_sync(0xffffffffu, window, place / STEPS % 32);
        const Step step{head, block * (STEP * STEPS) + place % STEPS * STEP, place < partial * STEPS};
        ++place;
        return step;
    }

   private:
    __device__ __forceinline__ void open(const Params& p) {
        place = 0;
        all = partial = length(p.q_counts, p.q_counts_stride, p.max_blocks);
        if (p.full_q_counts && p.full_q_indices) all += length(p.full_q_counts, p.full_q_counts_stride, p.max_full_blocks);
    }
    __device__ __forceinline__ void move_window(const Params& p, int at) {
        at += thread_place() % 32;
        window = p.q_blocks;
        if (at >= all) return;
        const int block = at < partial ? entry(p.q_indices, p.q_indices_stride, at)
                                       : entry(p.full_q_indices, p.full_q_indices_stride, at - partial);
        if (static_cast<unsigned>(block) < static_cast<unsigned>(p.q_blocks)) window = block;
    }
    __device__ __forceinline__ int length(const int* counts, const long long* stride, int width) const {
        return min(max(__ldg(counts + batch * stride[0] + head * stride[1] + kv_block), 0), width);
    }
    __device__ __forceinline__ int entry(const int* indices, const long long* stride, int at) const {
        return __ldg(indices + batch * stride[0] + head * stride[1] + kv_block * stride[2] + at);
    }
};
