// Tiles of 2-byte elements in shared memory, rows unpadded, free of bank conflicts for ldmatrix.
#pragma once

/// A row-major tile of COLS columns (a multiple of 32), handled in chunks of 16 bytes.
///
/// ldmatrix reads one chunk of each of eight consecutive rows. The chunk number is XORed with bits of the row so that
/// the eight land in eight different bank groups: three bits where a row is a multiple of 128 bytes; where it is an odd
/// multiple of 64 bytes, neighbouring rows already differ by half the banks and two bits of row / 2 do the rest.
template <int COLS>
struct Tile {
    static_assert(COLS % 32 == 0, "a row must be a multiple of 64 bytes");
    static constexpr unsigned ROW_BYTES = 2 * COLS;
    static constexpr int PERIOD = COLS % 64 == 0 ? 8 : 4;  // chunks that trade places within a row
    static constexpr int SPANS = COLS / 8 / PERIOD;        // groups of PERIOD chunks in a row

    /// Byte offset of a chunk.
    static __device__ __forceinline__ unsigned offset(int row, int chunk) {
        const int swizzle = PERIOD == 8 ? row & 7 : (row >> 1) & 3;
        return row * ROW_BYTES + ((chunk ^ swizzle) << 4);
    }

    /// Moves an address of chunk 0 or 1 of some row 2 * `pairs` chunks to the right. The tile must be 128-byte aligned.
    static __device__ __forceinline__ unsigned right(unsigned address, int pairs) {
        const int chunk = 2 * pairs;
        return (address ^ ((chunk % PERIOD) << 4)) + (chunk / PERIOD) * PERIOD * 16;
    }

    /// This lane's address for ldmatrix.x4 in the 16 x 16 piece at `row`, column 0, its four 8 x 8 matrices taken column
    /// by column: the order of an A operand, and with .trans of two B operands stored [k][n]. (The tensor cores want an
    /// operand in consecutive registers: matrices in another order would cost a move each.)
    static __device__ __forceinline__ unsigned lane_by_columns(unsigned tile, int row, int lane) {
        return tile + offset(row + (lane & 15), lane >> 4);
    }

    /// The same, taken row by row: the order of two B operands stored [n][k].
    static __device__ __forceinline__ unsigned lane_by_rows(unsigned tile, int row, int lane) {
        return tile + offset(row + (lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
    }
};

/// One thread's share of the copies that fill tiles of COLS columns: PERIOD neighbouring threads take a row, and
/// since the rows of one thread are a multiple of 8 apart its swizzle never changes.
template <typename Element, int COLS, int COPY_THREADS>
struct TileCopy {
    using Layout = Tile<COLS>;
    static constexpr int ROWS_PER_PASS = COPY_THREADS / Layout::PERIOD;
    static_assert(ROWS_PER_PASS % 8 == 0, "a thread's rows must share a swizzle");

    const Element* source;  // row 0 of the whole tensor (one batch and head) plus this thread's place
    long long stride;       // elements between rows
    int columns;            // columns that exist to the right of this thread's first
    int row;
    unsigned place;         // byte offset in a tile

    __device__ __forceinline__ TileCopy(const Element* tensor, long long row_stride, int width, int thread) {
        const int column = thread % Layout::PERIOD * 8;
        row = thread / Layout::PERIOD;
        stride = row_stride;
        columns = width - column;
        source = tensor + row * stride + column;
        place = Layout::offset(row, column / 8);
        // Kept as one finished pointer: left alone, the compiler keeps its several summands.
        asm volatile("" : "+l"(source), "+r"(place));
    }

    /// Starts the copy of rows first .. first + ROWS; rows at or past `end` become zeros.
    template <int ROWS>
    __device__ __forceinline__ void start(unsigned tile, int first, int end) const {
        const Element* from = source + first * stride;
        if (first + ROWS <= end) {
            each<ROWS>(tile + place, from, [](int) { return true; });
        } else {
            const int rows = end - first - row;
            each<ROWS>(tile + place, from, [rows](int below) { return below < rows; });
        }
    }

   private:
    template <int ROWS, typename Present>
    __device__ __forceinline__ void each(unsigned to, const Element* from, Present present) const {
#pragma unroll
        for (int below = 0; below < ROWS; below += ROWS_PER_PASS) {
#pragma unroll
            for (int span = 0; span < Layout::SPANS; ++span) {
                const int right = span * Layout::PERIOD * 8;
                // The last pass may be longer than the tile (a short tile, many threads).
                if (ROWS % ROWS_PER_PASS == 0 || below + row < ROWS)
                    copy_async(to + below * Layout::ROW_BYTES + 2 * right, from + below * stride + right,
                               right < columns && present(below));
            }
        }
    }
};
