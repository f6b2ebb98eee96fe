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

/// The copies of one thread that fill tiles of COLS columns, in passes of all threads: PERIOD neighbouring threads take a
/// row, and since the rows of one thread are a multiple of 8 apart its swizzle never changes.
template <typename Element, int COLS, int COPY_THREADS>
struct TileCopy {
    using Layout = Tile<COLS>;
    static constexpr int ROWS_PER_PASS = COPY_THREADS / Layout::PERIOD;
    static_assert(ROWS_PER_PASS % 8 == 0, "a thread's rows must share a swizzle");

    const Element* tensor;  // row 0 of one batch and head
    long long stride;       // elements between rows
    int width;              // columns that exist

    /// Starts the copy of rows first .. first + ROWS; rows at or past `end` become zeros.
    template <int ROWS>
    __device__ __forceinline__ void start(unsigned tile, int first, int end) const {
        static_assert(ROWS % ROWS_PER_PASS == 0, "a tile is a whole number of passes");
        const unsigned thread = thread_place();
        const Element* from = tensor + (first + row(thread)) * stride + column(thread);
        const unsigned to = tile + Layout::offset(row(thread), column(thread) / 8);
        if (first + ROWS <= end) {
            each<ROWS>(to, from, thread, [](int) { return true; });
        } else {
            const int rows = end - first - row(thread);
            each<ROWS>(to, from, thread, [rows](int below) { return below < rows; });
        }
    }

    /// A copy that is started pass by pass, between other work.
    struct Passes {
        unsigned to;
        const Element* from;
        int rows;     // that exist from this thread's first on
        int columns;  // likewise
    };


    __device__ __forceinline__ Passes passes(unsigned tile, int first, int end) const {
        const unsigned thread = thread_place();
        return {tile + Layout::offset(row(thread), column(thread) / 8),
                tensor + (first + row(thread)) * stride + column(thread), end - first - row(thread),
                width - column(thread)};
    }

    /// Starts the pass at row `below` of the tile; passes must come in order.
    __device__ __forceinline__ void next(Passes& copy, int below) const {
        spans<0>(copy.to + below * Layout::ROW_BYTES, copy.from, below < copy.rows, copy.columns);
        copy.from += ROWS_PER_PASS * stride;
    }

   private:
    static __device__ __forceinline__ int row(unsigned thread) { return thread / Layout::PERIOD; }
    static __device__ __forceinline__ int column(unsigned thread) { return thread % Layout::PERIOD * 8; }

    /// Passes from row BELOW on, from a pointer that walks down with them.
    template <int ROWS, int BELOW = 0, typename Present>
    __device__ __forceinline__ void each(unsigned to, const Element* from, unsigned thread, Present present) const {
        if constexpr (BELOW < ROWS) {
            spans<BELOW>(to, from, present(BELOW), width - column(thread));
            each<ROWS, BELOW + ROWS_PER_PASS>(to, from + ROWS_PER_PASS * stride, thread, present);
        }
    }

    template <int BELOW, int SPAN = 0>
    __device__ __forceinline__ void spans(unsigned to, const Element* from, bool present, int columns) const {
        if constexpr (SPAN < Layout::SPANS) {
            constexpr int RIGHT = SPAN * Layout::PERIOD * 8;
            copy_async<int(BELOW * Layout::ROW_BYTES) + 2 * RIGHT, 2 * RIGHT>(to, from, present && RIGHT < columns);
            spans<BELOW, SPAN + 1>(to, from, present, columns);
        }
    }
};
