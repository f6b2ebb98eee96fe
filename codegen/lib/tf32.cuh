// Products of f32 matrices on the tensor cores, nearly as exact as FMAs.
//
// An f32 is split into what TF32 holds of it and the rest; three of the four products of the parts leave out a part in 2^22
// of |a| |b|, where TF32 alone leaves out one in 2^11.
#pragma once

/// x is `high` plus `low` but for its last bits; the instruction reads the upper 19 bits of each.
struct Split {
    unsigned high, low;
    __device__ __forceinline__ explicit Split(float x) {
        high = __float_as_uint(x) & 0xffffe000u;
        low = __float_as_uint(x - __uint_as_float(high));
    }
};

/// c += a b of TF32: a is 16 x 8 (rows l / 4 and l / 4 + 8, columns l % 4 and l % 4 + 4 of lane l), b 8 x 8 (the same columns
/// as its rows, column l / 4), c 16 x 8 as mma.cuh says.
__device__ __forceinline__ void add_tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A product of two rows as plain FMAs: what the split makes of infinities is no answer.
__device__ __forceinline__ float plain_product(const float* a, const float* b, int width) {
    float product = 0.0f;
    for (int d = 0; d < width; ++d) product = fmaf(a[d], b[d], product);
    return product;
}
