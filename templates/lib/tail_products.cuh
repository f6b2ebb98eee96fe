// Products of the block tail's backward, of 16 rows of a thread block with rows that its warps take TAKEN at a time.
//
// The thread block's rows lie in shared memory, split. The others come straight to registers, for no other warp wants
// them: four neighbouring elements of a row at a time, as the order of a product's terms and that of its columns are
// free. In a product over columns a lane's four elements serve as two columns of two products. In that over rows, terms
// l % 4 and l % 4 + 4 are rows 2 (l % 4) and the next, so that the accumulators of the first are its operand as they
// are; column l / 4 of product t of four is column 4 (l / 4) + t.
//
// Products over columns are of three of TF32 (tf32.cuh), for an exponential makes their absolute error a relative one
// and a difference may cancel; factors and rows of the other are rounded to TF32.
#pragma once

<% include "lib/tf32.cuh" %>

constexpr int TAKEN = 16;         // rows that a warp takes at a time
constexpr int HALVES = TAKEN / 8;  // of 8: a product's columns, and the terms of the next
constexpr int AHEAD = 2;          // pieces of rows that are on their way at once
constexpr unsigned ALL_LANES = 0xffffffffu;

static_assert(ROWS == 16 && THREADS == 32 * WARPS && D % 32 == 0 && D_V % 32 == 0 && MERGED % 32 == 0);
static_assert(8 * ROWS * (D + D_V) <= SMEM_BYTES && 4 * ROWS * WARPS * PITCH <= SMEM_BYTES);

/// What a lane has of the sums of 16 rows: `at[g][t]` is the accumulator of product t of group g.
template <int WIDTH>
struct Sums {
    float at[WIDTH / 32][4][4] = {};
};

template <>
struct Sums<0> {};

/// The nearest of TF32.
__device__ __forceinline__ unsigned rounded_tf32(float x) {
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
    return rounded;
}

/// Writes the thread block's rows as `product_over_columns` wants them, the elements of a lane side by side: their high
/// parts, and behind 4 * WIDTH of these, in fours, the low ones. Rows from `count` on are 0.
template <int WIDTH>
__device__ __forceinline__ void split_rows(uint4* split, const float* rows, long long stride, int count, int width) {
    unsigned* high = reinterpret_cast<unsigned*>(split);
    unsigned* low = high + ROWS * WIDTH;
    for (int i = threadIdx.x; i < ROWS * (WIDTH / 4); i += THREADS) {
        const int row = i / (WIDTH / 4), column = i % (WIDTH / 4) * 4;
        float4 piece = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (row < count && column < width) piece = __ldg(reinterpret_cast<const float4*>(rows + row * stride + column));
        const float elements[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int step = column / 16 * 2 + c / 2;
            const int place = (step * 32 + row % 8 * 4 + column % 16 / 4) * 4 + c % 2 * 2 + row / 8;
            const Split parts(elements[c]);
            high[place] = parts.high;
            low[place] = parts.low;
        }
    }
}

/// The products of the thread block's rows with those of bits `wanted` from `rows` on; no others are read. Of these
/// `strange` gets the bits that have an element that is no number, or infinite.
template <int WIDTH>
__device__ __forceinline__ void product_over_columns(float (&product)[HALVES][4], const uint4* split, const float* rows,
                                                     long long stride, unsigned wanted, int width, unsigned& strange) {
    constexpr int PIECES = WIDTH / 16;  // of 16 columns of all rows
    const uint4* split_low = split + WIDTH / 8 * 32;
    const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
    const float* source = rows + group * stride + 4 * member;  // this lane's row of each 8
    float4 piece[AHEAD][HALVES];
    const auto fetch = [&](int of) {
#pragma unroll
        for (int n = 0; n < HALVES; ++n) {
            float4& to = piece[of % AHEAD][n];
            to = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if ((wanted >> (8 * n + group) & 1) && 16 * of + 4 * member < width)
                to = __ldg(reinterpret_cast<const float4*>(source + 8 * n * stride + 16 * of));
        }
    };
    float check[HALVES] = {};  // NaN, where an element is no number
#pragma unroll
    for (int n = 0; n < HALVES; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) product[n][i] = 0.0f;
#pragma unroll
    for (int of = 0; of < AHEAD; ++of) fetch(of);
    // Not unrolled further than it must be: registers for more loads would be missing everywhere else.
#pragma unroll AHEAD
    for (int of = 0; of < PIECES; ++of) {
        float4 row[HALVES];
#pragma unroll
        for (int n = 0; n < HALVES; ++n) row[n] = piece[of % AHEAD][n];
        if (of + AHEAD < PIECES) fetch(of + AHEAD);
#pragma unroll
        for (int n = 0; n < HALVES; ++n) {
            check[n] = fmaf(0.0f, row[n].x, fmaf(0.0f, row[n].y, check[n]));
            check[n] = fmaf(0.0f, row[n].z, fmaf(0.0f, row[n].w, check[n]));
        }
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
            const uint4 h = split[(2 * of + pair) * 32 + lane], l = split_low[(2 * of + pair) * 32 + lane];
            const unsigned high[4] = {h.x, h.y, h.z, h.w}, low[4] = {l.x, l.y, l.z, l.w};
#pragma unroll
            for (int n = 0; n < HALVES; ++n) {
                const Split b0(pair == 0 ? row[n].x : row[n].z), b1(pair == 0 ? row[n].y : row[n].w);
                add_tf32(product[n], low, b0.high, b1.high);
                add_tf32(product[n], high, b0.low, b1.low);
                add_tf32(product[n], high, b0.high, b1.high);
            }
        }
    }
    unsigned found = 0;
#pragma unroll
    for (int n = 0; n < HALVES; ++n)
        if (check[n] != 0.0f) found |= 1u << (8 * n + group);
    strange = __reduce_or_sync(ALL_LANES, found);
}

/// The `strange` of a product over columns, without the product.
template <int WIDTH>
__device__ __forceinline__ unsigned strange_rows(const float* rows, long long stride, unsigned wanted, int width) {
    const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
    unsigned found = 0;
#pragma unroll
    for (int n = 0; n < HALVES; ++n) {
        const int row = 8 * n + group;
        if (!(wanted >> row & 1)) continue;
        float check = 0.0f;
#pragma unroll 4
        for (int column = 4 * member; column < width; column += 16) {
            const float4 piece = __ldg(reinterpret_cast<const float4*>(rows + row * stride + column));
            check = fmaf(0.0f, piece.x, fmaf(0.0f, piece.y, check));
            check = fmaf(0.0f, piece.z, fmaf(0.0f, piece.w, check));
        }
        if (check != 0.0f) found |= 1u << row;
    }
    return __reduce_or_sync(ALL_LANES, found);
}

/// Adds the rows of bits `wanted` from `rows` on, times their factors, to the sums of the thread block's rows. A factor
/// of 0 does not keep a NaN of its row from them: `wanted` does.
template <int WIDTH>
__device__ __forceinline__ void add_rows(Sums<WIDTH>& sums, const float (&factor)[HALVES][4], const float* rows,
                                         long long stride, unsigned wanted, int width) {
    constexpr int PIECES = WIDTH / 32 * HALVES;  // 32 columns of 8 rows
    const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
    const float* source = rows + 2 * member * stride + 4 * group;
    float4 piece[AHEAD][2];
    const auto fetch = [&](int of) {
        const int column = of / HALVES * 32, n = of % HALVES;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            float4& to = piece[of % AHEAD][c];
            to = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if ((wanted >> (8 * n + 2 * member + c) & 1) && column + 4 * group < width)
                to = __ldg(reinterpret_cast<const float4*>(source + (8 * n + c) * stride + column));
        }
    };
    unsigned factors[HALVES][4];
#pragma unroll
    for (int n = 0; n < HALVES; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) factors[n][i] = rounded_tf32(factor[n][i % 2 * 2 + i / 2]);
#pragma unroll
    for (int of = 0; of < AHEAD; ++of) fetch(of);
#pragma unroll
    for (int of = 0; of < PIECES; ++of) {
        unsigned b[2][4];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            const float4 row = piece[of % AHEAD][c];
            const float elements[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
            for (int t = 0; t < 4; ++t) b[c][t] = rounded_tf32(elements[t]);
        }
        if (of + AHEAD < PIECES) fetch(of + AHEAD);
#pragma unroll
        for (int t = 0; t < 4; ++t) add_tf32(sums.at[of / HALVES][t], factors[of % HALVES], b[0][t], b[1][t]);
    }
}

/// Writes what all warps have together, in the order of the warps, times `factor_of(row)`. `results` is shared memory,
/// [WARPS][ROWS][PITCH], that is free once every warp is here.
template <int WIDTH, class Factor>
__device__ __forceinline__ void write_merged(const Sums<WIDTH>& sums, float* results, float* out, long long stride,
                                             int count, int width, Factor factor_of) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;
#pragma unroll
    for (int begin = 0; begin < WIDTH; begin += MERGED) {
        __syncthreads();
#pragma unroll
        for (int g = begin / 32; g < (begin + MERGED) / 32; ++g)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float* to =
                    results + (warp * ROWS + group + i / 2 * 8) * PITCH + 32 * g - begin + 8 * member + i % 2 * 4;
                *reinterpret_cast<float4*>(to) =
                    make_float4(sums.at[g][0][i], sums.at[g][1][i], sums.at[g][2][i], sums.at[g][3][i]);
            }
        __syncthreads();
        for (int i = threadIdx.x; i < ROWS * (MERGED / 4); i += THREADS) {
            const int row = i / (MERGED / 4), column = i % (MERGED / 4) * 4;
            if (row >= count || begin + column >= width) continue;
            float4 total = *reinterpret_cast<const float4*>(results + row * PITCH + column);
            for (int of = 1; of < WARPS; ++of) {
                const float4 part = *reinterpret_cast<const float4*>(results + (of * ROWS + row) * PITCH + column);
                total = make_float4(total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w);
            }
            const float by = factor_of(row);
            *reinterpret_cast<float4*>(out + row * stride + begin + column) =
                make_float4(total.x * by, total.y * by, total.z * by, total.w * by);
        }
    }
}
