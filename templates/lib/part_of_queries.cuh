// The query blocks that one of several copies of a block of means sums up. After query_blocks.cuh, whose steps these are.
#pragma once

/// Walks through a part of the query blocks of every query head that shares a key head, one head after another, STEPS steps of STEP
/// queries each. Query blocks that none of the means stand for anything in are passed over. Every warp walks by itself; each lane looks at
/// one of 32 query blocks.
template <int STEP, int STEPS>
struct PartOfQueries {
    using Step = typename QueryBlocks<STEP, STEPS>::Step;

    int batch, piece;        // the first of the block's pieces
    int first_block, count;  // query blocks of this part
    int head, end;           // heads left: head to end - 1
    int window;              // the first of 32 query blocks of this part
    unsigned left;           // of those, with a bit each
    int place;               // steps taken of the first of them

    /// `of_block`: counted through all the copies, of `keys / BLOCK_KV` blocks each.
    __device__ __forceinline__ PartOfQueries(const Params& p, int of_block, int kv_head, int of_batch)
        : batch(of_batch), window(-32), left(0), place(0) {
        const int blocks = p.keys / BLOCK_KV, part = of_block / blocks, parts = p.seq_kv / p.keys;
        piece = (of_block - part * blocks) * (BLOCK_KV / TAIL_PIECE);
        const int each = (p.q_blocks + parts - 1) / parts;
        first_block = part * each;
        count = min(max(p.q_blocks - first_block, 0), each);
        const int group = p.heads / p.kv_heads;
        head = kv_head * group;
        end = head + group;
    }

    __device__ __forceinline__ Step next(const Params& params) {
        const Params* hidden = &params;
        asm volatile("" : "+l"(hidden));
        const Params& p = *hidden;
        while (left == 0) {
            window += 32;
            if (window >= count) {
                window = 0;
                ++head;
            }
            if (head >= end || count == 0) return {-1, 0, false};
            const int lane = thread_place() % 32;
            bool takes_part = window + lane < count;
            if (takes_part && p.tail_pieces != nullptr) {
                const int* words = p.tail_pieces + batch * p.tail_pieces_stride[0] + head * p.tail_pieces_stride[1] +
                                   (first_block + window + lane) * p.tail_pieces_stride[2];
                // A block's pieces are a power of two of them: one word has them all.
                takes_part = static_cast<unsigned>(__ldg(words + piece / 32)) >> piece % 32 & ((1u << BLOCK_KV / TAIL_PIECE) - 1);
            }
            left = __ballot_sync(0xffffffffu, takes_part);
        }
        const int block = first_block + window + __ffs(left) - 1;
        const Step step{head, (block * STEPS + place) * STEP, false};
        if (++place == STEPS) {
            place = 0;
            left &= left - 1;
        }
        return step;
    }
};

/// The first of a query block's weights.
__device__ __forceinline__ const float* weights_of_means(const Params& p, int q_block, int head, int batch) {
    return p.tail_weights + batch * p.tail_weights_stride[0] + head * p.tail_weights_stride[1] + q_block * p.tail_weights_stride[2];
}
