// Tiles and products of the block tail: a thread block has ROWS rows of f32 in shared memory, and TAKEN others pass by
// at a time. A warp has 16 of the rows (its group) and 16 of those that pass by (its share), whose results are added up
// at the end, in the order of the shares. SUM_COLUMNS: how many columns of sums a warp has.
//
// An f32 is split into two bf16, the nearest and the nearest of the rest; three of the four products of the parts leave
// out a part in 2^17 of |a| |b|, for an exponential makes the absolute error of a score a relative one and a difference
// may cancel.
#pragma once

<% include "lib/thread.cuh" %>
<% include "lib/mma.cuh" %>
<% include "lib/tile.cuh" %>

constexpr int GROUPS = ROWS / 16;
constexpr int SHARES = WARPS / GROUPS;
constexpr int TAKEN = 16 * SHARES;
constexpr int WORDS = TAKEN / 32;  // of bits, one for each row that passes by
// Rows wait in registers for the tiles to be read, where there is room for them beside the sums of a warp.
constexpr bool HAS_ROOM = TAKEN * (D + D_V) / THREADS + SUM_COLUMNS / 2 <= 144;
constexpr unsigned ALL_LANES = 0xffffffffu;

using Bf16 = Mma<__nv_bfloat16>;

static_assert(ROWS % 16 == 0 && WARPS % GROUPS == 0 && (TAKEN == 32 || TAKEN == 64) && THREADS == 32 * WARPS && D % 32 == 0 &&
              D_V % 32 == 0 && MERGED % 32 == 0);
static_assert(4 * ROWS * SHARES * PITCH <= SMEM_BYTES);

__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fffffff); }

/// Bit `row` of words, without an array's address.
__device__ __forceinline__ bool has_bit(const unsigned (&words)[WORDS], int row) {
    unsigned word = words[0];
    if constexpr (WORDS > 1)
        if (row >= 32) word = words[1];
    return word >> row % 32 & 1;
}

__device__ __forceinline__ int warp_group() { return threadIdx.x / 32 % GROUPS; }
__device__ __forceinline__ int warp_share() { return threadIdx.x / 32 / GROUPS; }

/// Where COUNT rows lie, split.
template <int COLS, int COUNT>
struct SplitTile {
    using Layout = Tile<COLS>;
    static constexpr unsigned PART_BYTES = COUNT * Layout::ROW_BYTES;
    static constexpr unsigned BYTES = 2 * PART_BYTES;
    unsigned high;

    __device__ __forceinline__ unsigned end() const { return high + BYTES; }

    /// Writes four elements, 0 where the row is not `wanted`. Whether any of those written is no number, or infinite.
    __device__ __forceinline__ bool store(int row, int column, float4 piece, bool wanted) const {
        if (!wanted) piece = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const unsigned h[2] = {Bf16::pack(piece.x, piece.y), Bf16::pack(piece.z, piece.w)};
        const float2 first = Bf16::unpack(h[0]), second = Bf16::unpack(h[1]);
        const unsigned l[2] = {Bf16::pack(piece.x - first.x, piece.y - first.y),
                               Bf16::pack(piece.z - second.x, piece.w - second.y)};
        const unsigned to = high + Layout::offset(row, column / 8) + column % 8 * 2;
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(h[0]), "r"(h[1]) : "memory");
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to + PART_BYTES), "r"(l[0]), "r"(l[1]) : "memory");
        return fmaf(0.0f, first.x, fmaf(0.0f, first.y, fmaf(0.0f, second.x, 0.0f * second.y))) != 0.0f;
    }

    /// Of a share's 16 rows, those with an element that is no number, or infinite.
    __device__ __forceinline__ unsigned strange_of_share() const {
        const int lane = threadIdx.x % 32, row = 16 * warp_share() + lane % 16;
        bool found = false;
        for (int column = lane / 16 * 2; column < COLS; column += 4) {
            const unsigned pair = load_shared(high + Layout::offset(row, column / 8) + column % 8 * 2);
            found |= (pair & 0x7f80u) == 0x7f80u || (pair & 0x7f800000u) == 0x7f800000u;
        }
        const unsigned all = __ballot_sync(ALL_LANES, found);
        return (all | all >> 16) & 0xffffu;
    }

    /// Zeros in place of a share's rows of these bits.
    __device__ __forceinline__ void clear_of_share(unsigned rows) const {
        for (int row = 0; row < 16; ++row)
            if (rows >> row & 1)
                for (int column = threadIdx.x % 32 * 2; column < COLS; column += 64) {
                    const unsigned to = high + Layout::offset(16 * warp_share() + row, column / 8) + column % 8 * 2;
                    store_shared(to, 0);
                    store_shared(to + PART_BYTES, 0);
                }
    }
};

/// Rows of f32 on their way from memory to a tile: those that are there, the others as zeros.
template <int COLS, int COUNT>
struct Arriving {
    static constexpr int PIECES = COUNT * (COLS / 4) / THREADS;  // of a thread
    // On their way at once where they do not wait.
    static constexpr int BATCH = PIECES < 8 ? PIECES : PIECES % 8 == 0 ? 8 : 6;
    static_assert(COUNT * (COLS / 4) % THREADS == 0 && PIECES % BATCH == 0);
    const float* rows;
    long long stride;
    int count, width;
    float4 waiting[HAS_ROOM ? PIECES : 1];

    __device__ __forceinline__ void begin(const float* from, long long of_rows, int there, int columns) {
        rows = from, stride = of_rows, count = there, width = columns;
        if constexpr (HAS_ROOM)
#pragma unroll
            for (int i = 0; i < PIECES; ++i) waiting[i] = fetch(i);
    }

    /// Writes them. Whether any of those that `is_wanted(row)` is no number, or infinite.
    template <class Wanted>
    __device__ __forceinline__ bool finish(const SplitTile<COLS, COUNT>& tile, Wanted is_wanted) const {
        bool strange = false;
        if constexpr (HAS_ROOM) {
#pragma unroll
            for (int i = 0; i < PIECES; ++i)
                strange |= tile.store(row_of(i), column_of(i), waiting[i], is_wanted(row_of(i)));
        } else {
#pragma unroll 1
            for (int first = 0; first < PIECES; first += BATCH) {
                float4 piece[BATCH];
#pragma unroll
                for (int i = 0; i < BATCH; ++i) piece[i] = fetch(first + i);
#pragma unroll
                for (int i = 0; i < BATCH; ++i)
                    strange |= tile.store(row_of(first + i), column_of(first + i), piece[i], is_wanted(row_of(first + i)));
            }
        }
        return strange;
    }

   private:
    static __device__ __forceinline__ int row_of(int piece) { return (threadIdx.x + piece * THREADS) / (COLS / 4); }
    static __device__ __forceinline__ int column_of(int piece) {
        return (threadIdx.x + piece * THREADS) % (COLS / 4) * 4;
    }
    __device__ __forceinline__ float4 fetch(int piece) const {
        const int row = row_of(piece), column = column_of(piece);
        if (row >= count || column >= width) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        return __ldg(reinterpret_cast<const float4*>(rows + row * stride + column));
    }
};

/// Writes the thread block's own rows to their tile.
template <int COLS>
__device__ __forceinline__ void store_own(const SplitTile<COLS, ROWS>& tile, const float* rows, long long stride,
                                          int count, int width) {
    for (int i = threadIdx.x; i < ROWS * (COLS / 4); i += THREADS) {
        const int row = i / (COLS / 4), column = i % (COLS / 4) * 4;
        float4 piece = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (row < count && column < width) piece = __ldg(reinterpret_cast<const float4*>(rows + row * stride + column));
        tile.store(row, column, piece, true);
    }
}

/// The products of the group's rows with those of the share.
template <int COLS>
__device__ __forceinline__ void multiply(float (&product)[2][4], const SplitTile<COLS, ROWS>& own,
                                         const SplitTile<COLS, TAKEN>& other) {
    using Layout = Tile<COLS>;
    const int lane = thread_place() % 32;
    const unsigned a_lane = Layout::lane_by_columns(own.high, 16 * warp_group(), lane);
    const unsigned b_lane = Layout::lane_by_rows(other.high, 16 * warp_share(), lane);
    // Sums of their own, so that fewer products wait for each other.
    float low[2][4] = {};
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) product[n][i] = 0.0f;
#pragma unroll
    for (int d = 0; d < COLS / 16; ++d) {
        unsigned a_high[4], a_low[4], b_high[4], b_low[4];
        load_matrices(a_high, Layout::right(a_lane, d));
        load_matrices(b_high, Layout::right(b_lane, d));
        load_matrices(a_low, Layout::right(a_lane + own.PART_BYTES, d));
        load_matrices(b_low, Layout::right(b_lane + other.PART_BYTES, d));
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            Bf16::add(product[n], a_high, b_high[2 * n], b_high[2 * n + 1]);
            Bf16::add(low[n], a_low, b_high[2 * n], b_high[2 * n + 1]);
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) Bf16::add(low[n], a_high, b_low[2 * n], b_low[2 * n + 1]);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) product[n][i] += low[n][i];
}

/// Adds SUM_COLS columns of the share's rows from `column` on, times their factors, which are where products are. A
/// factor of 0 does not keep a NaN of its row from the sums.
template <int SUM_COLS, int COLS>
__device__ __forceinline__ void add_rows(float (&sums)[SUM_COLS / 8][4], const float (&factor)[2][4],
                                         const SplitTile<COLS, TAKEN>& other, int column) {
    using Layout = Tile<COLS>;
    const int lane = thread_place() % 32;
    const unsigned b_lane = Layout::lane_by_columns(other.high, 16 * warp_share(), lane);
    unsigned high[4], low[4];
#pragma unroll
    for (int part = 0; part < 4; ++part) {
        const float* pair = &factor[part / 2][part % 2 * 2];
        high[part] = Bf16::pack(pair[0], pair[1]);
        const float2 of_high = Bf16::unpack(high[part]);
        low[part] = Bf16::pack(pair[0] - of_high.x, pair[1] - of_high.y);
    }
#pragma unroll
    for (int d = 0; d < SUM_COLS / 16; ++d) {
        unsigned b_high[4], b_low[4];
        load_matrices_transposed(b_high, Layout::right(b_lane, column / 16 + d));
        load_matrices_transposed(b_low, Layout::right(b_lane + other.PART_BYTES, column / 16 + d));
#pragma unroll
        for (int n = 0; n < 2; ++n) Bf16::add(sums[2 * d + n], high, b_high[2 * n], b_high[2 * n + 1]);
#pragma unroll
        for (int n = 0; n < 2; ++n) Bf16::add(sums[2 * d + n], low, b_high[2 * n], b_high[2 * n + 1]);
#pragma unroll
        for (int n = 0; n < 2; ++n) Bf16::add(sums[2 * d + n], high, b_low[2 * n], b_low[2 * n + 1]);
    }
}

/// Writes what all shares have together, times `factor_of(row)`. `results` is shared memory, [SHARES][ROWS][PITCH], that
/// is free once every warp is here.
template <int COLS, class Factor>
__device__ __forceinline__ void write_merged(const float (&sums)[COLS / 8][4], float* results, float* out,
                                             long long stride, int count, int width, Factor factor_of) {
    const int lane = threadIdx.x % 32;
    float* own = results + (warp_share() * ROWS + 16 * warp_group() + lane / 4) * PITCH + lane % 4 * 2;
#pragma unroll
    for (int begin = 0; begin < COLS; begin += MERGED) {
        __syncthreads();
#pragma unroll
        for (int c = 0; c < MERGED; c += 8)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float(&pair)[4] = sums[(begin + c) / 8];
                *reinterpret_cast<float2*>(own + 8 * half * PITCH + c) = make_float2(pair[2 * half], pair[2 * half + 1]);
            }
        __syncthreads();
        for (int i = threadIdx.x; i < ROWS * (MERGED / 4); i += THREADS) {
            const int row = i / (MERGED / 4), column = i % (MERGED / 4) * 4;
            if (row >= count || begin + column >= width) continue;
            float4 total = *reinterpret_cast<const float4*>(results + row * PITCH + column);
            for (int of = 1; of < SHARES; ++of) {
                const float4 part = *reinterpret_cast<const float4*>(results + (of * ROWS + row) * PITCH + column);
                total = make_float4(total.x + part.x, total.y + part.y, total.z + part.z, total.w + part.w);
            }
            const float by = factor_of(row);
            *reinterpret_cast<float4*>(out + row * stride + begin + column) =
                make_float4(total.x * by, total.y * by, total.z * by, total.w * by);
        }
    }
}
