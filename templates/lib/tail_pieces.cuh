// The means that stand for what a query block drops, in pieces of TAIL_PIECE.
#pragma once

/// The pieces of a query block that take part, in ascending order and as many at a time as fit STEP means.
template <int STEP>
struct TailPieces {
    static constexpr int TOGETHER = STEP > TAIL_PIECE ? STEP / TAIL_PIECE : 1;  // neighbours that are taken or left together
    static_assert(TOGETHER <= 2);

    const int* words;
    int count;      // of words
    int last;       // pieces of the last word
    int next_word;  // the one after that of `left`
    unsigned left;

    /// Of the row (q_block, head, batch).
    static __device__ __forceinline__ TailPieces of(const Params& p, dim3 row) {
        const int* words = p.tail_pieces;
        if (words == nullptr || p.tail_weights == nullptr) return {nullptr, 0, 0, 0, 0};
        words += row.z * p.tail_pieces_stride[0] + row.y * p.tail_pieces_stride[1] + row.x * p.tail_pieces_stride[2];
        return {words, p.tail_words, p.tail_keys / TAIL_PIECE - 32 * (p.tail_words - 1), 0, 0};
    }

    /// How many there are.
    __device__ __forceinline__ int total() const {
        int total = 0;
        for (int word = 0; word < count; ++word) total += __popc(present(word));
        return total;
    }

    /// The first of the next means, or -1 where none are left.
    __device__ __forceinline__ int next() {
        while (left == 0) {
            if (next_word >= count) return -1;
            left = present(next_word++);
        }
        const int piece = __ffs(left) - 1;
        left &= left - 1;
        return ((next_word - 1) * 32 + piece) * TAIL_PIECE;
    }

   private:
    /// A bit for the first of those that are taken together, if there is any of them.
    __device__ __forceinline__ unsigned present(int word) const {
        unsigned bits = static_cast<unsigned>(__ldg(words + word));
        if (word == count - 1 && last < 32) bits &= (1u << last) - 1;
        return TOGETHER == 1 ? bits : (bits | bits >> 1) & 0x55555555u;
    }
};

/// The first weight of a query block's means.
__device__ __forceinline__ const float* tail_weights_of(const Params& p, dim3 row) {
    return p.tail_weights + row.z * p.tail_weights_stride[0] + row.y * p.tail_weights_stride[1] + row.x * p.tail_weights_stride[2];
}

/// Of a score as an exponent of two, with the logarithm of a mean's weight. Who has no weight takes no part, whatever the score is.
__device__ __forceinline__ float weighted_exponent(float exponent, float weight) {
    return weight == -infinity() ? weight : fmaf(weight, LOG2_E, exponent);
}

/// In the place of a first key: the first of some means. Keys are counted from 0 on.
__device__ __forceinline__ int as_first_key(int first_mean) { return -1 - first_mean; }
__device__ __forceinline__ bool is_of_means(int first_key) { return first_key < 0; }
__device__ __forceinline__ int first_mean_of(int first_key) { return -1 - first_key; }

/// A mean's score: the product of a query with it, and the logarithm of its weight as part of that product. Who has no weight takes no
/// part, whatever the product is.
__device__ __forceinline__ float weighted_score(float product, float weight, float scale) {
    return weight == -infinity() ? weight : fmaf(weight, reciprocal_approx(fmaxf(fabsf(scale), 1e-30f)), product);
}
