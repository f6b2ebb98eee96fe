// Numbers that the tensor cores subtract, one of each column of a warpgroup's accumulators. After mma.cuh, tma.cuh and
// query_statistics.cuh.
#pragma once

/// A product of 16 more columns subtracts x as a sum of three bf16, which have all of an f32's 24 bits. It takes as long as the tensor
/// cores are held up by subtractions that warps make, and it has no loads of x to wait for.
///
/// Both operands are one piece of 8 columns that their descriptors name twice; hence halves: a row of the second operand is an x, three
/// summands and zeros, and every row of the first is three times -1/2 and zeros.
struct Subtrahend {
    static constexpr unsigned ROW_BYTES = 16, FIRST_BYTES = 8 * ROW_BYTES;

    /// Writes the first operand, of which all rows are the same eight. One thread does, and publishes it.
    static __device__ __forceinline__ void store_first(unsigned to) {
#pragma unroll
        for (int row = 0; row < 8; ++row) store_row(to + row * ROW_BYTES, -0.5f, -0.5f, -0.5f);
    }

    /// Writes the rows of what a warp's lanes know is less, of queries past the first `queries` 0, and publishes them.
    template <int QUERIES>
    static __device__ __forceinline__ void store_rows(unsigned to, const LaneStatistics<QUERIES>& statistics, int queries) {
#pragma unroll
        for (int i = 0; i < QUERIES / 32; ++i) {
            const int query = i * 32 + thread_place() % 32;
            const float x = query < queries ? statistics.less[i] : 0.0f;
            const float first = first_bits(x), second = first_bits(x - first);
            store_row(to + query * ROW_BYTES, first, second, x - first - second);
        }
        publish_shared();
    }

    /// Descriptors of both operands, without a swizzle: only the second's eights of rows differ, and lie one after another.
    static __device__ __forceinline__ unsigned long long first(unsigned address) { return address >> 4; }
    static __device__ __forceinline__ unsigned long long second(unsigned address) {
        return static_cast<unsigned long long>(8 * ROW_BYTES >> 4) << 32 | address >> 4;
    }

   private:
    /// As many of x's bits as a bf16 has.
    static __device__ __forceinline__ float first_bits(float x) { return __uint_as_float(__float_as_uint(x) & 0xffff0000u); }
    static __device__ __forceinline__ void store_row(unsigned to, float first, float second, float third) {
        using Pair = Mma<__nv_bfloat16>;
        asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%3};" ::"r"(to), "r"(Pair::pack(first, second)), "r"(Pair::pack(third, 0.0f)),
                     "r"(0)
                     : "memory");
    }
};
