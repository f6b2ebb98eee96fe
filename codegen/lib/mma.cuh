// The tensor cores' m16n8k16 product on f16 and bf16 with f32 accumulation, and the loads of its operands.
//
// In a 16 x 8 accumulator, lane l holds columns 2 * (l % 4) and the next, of row l / 4 (elements 0, 1) and of row
// l / 4 + 8 (elements 2, 3). Two accumulators side by side, packed, are the A operand of a following product.
#pragma once

/// Four 8 x 8 matrices of 2-byte elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

/// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&to)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

template <typename Element>
struct Mma;

template <>
struct Mma<__half> {
    static constexpr bool RANGE_OF_F32 = false;
    static __device__ __forceinline__ void add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
    /// Two neighbouring elements, the first in the low half.
    static __device__ __forceinline__ unsigned pack(float first, float second) {
        unsigned pair;
        asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(pair) : "f"(first), "f"(second));
        return pair;
    }
    static __device__ __forceinline__ float2 unpack(unsigned pair) {
        return __half22float2(*reinterpret_cast<const __half2*>(&pair));
    }
    static __device__ __forceinline__ unsigned multiply(unsigned a, unsigned b) {
        unsigned pair;
        asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
        return pair;
    }
};

template <>
struct Mma<__nv_bfloat16> {
    static constexpr bool RANGE_OF_F32 = true;
    static __device__ __forceinline__ void add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
    static __device__ __forceinline__ unsigned pack(float first, float second) {
        unsigned pair;
        asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(pair) : "f"(first), "f"(second));
        return pair;
    }
    static __device__ __forceinline__ float2 unpack(unsigned pair) {
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    }
    /// The products of two pairs, element by element, rounded. (sm_90)
    static __device__ __forceinline__ unsigned multiply(unsigned a, unsigned b) {
        unsigned pair;
        asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
        return pair;
    }
};
