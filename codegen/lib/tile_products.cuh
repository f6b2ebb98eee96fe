// One warp's products of tiles in shared memory (mma.sync).
//
// The warp owns 16 * M_TILES rows of a tile that stays; the rows of another tile pass by, 16 * N_TILES at a time.
#pragma once

/// products = X Yᵀ over the columns of the tiles. `x_lane` is this lane's address by columns of the warp's first row in X,
/// `y_lane` by rows of the first row in Y.
template <typename Element, int COLS, int M_TILES, int N_TILES>
__device__ __forceinline__ void multiply_tiles(float (&products)[M_TILES][2 * N_TILES][4], unsigned x_lane, unsigned y_lane) {
    using Layout = Tile<COLS>;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int n = 0; n < 2 * N_TILES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) products[m][n][i] = 0.0f;
#pragma unroll
    for (int d = 0; d < COLS / 16; ++d) {
        unsigned a[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; ++m)
            load_matrices(a[m], Layout::right(x_lane, d) + m * 16 * Layout::ROW_BYTES);
#pragma unroll
        for (int n = 0; n < N_TILES; ++n) {
            unsigned b[4];
            load_matrices(b, Layout::right(y_lane, d) + n * 16 * Layout::ROW_BYTES);
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
                Mma<Element>::add(products[m][2 * n], a[m], b[0], b[1]);
                Mma<Element>::add(products[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/// sums += W Y, with W in the accumulators of a product: rounded to the element type here. SUM_COLS columns of Y from the one
/// that `y_lane`, this lane's address by columns of the first row in Y, begins at.
template <typename Element, int COLS, int SUM_COLS, int M_TILES, int N_TILES>
__device__ __forceinline__ void accumulate_tiles(float (&sums)[M_TILES][SUM_COLS / 8][4],
                                                 const float (&weights)[M_TILES][2 * N_TILES][4], unsigned y_lane) {
    using Layout = Tile<COLS>;
#pragma unroll
    for (int n = 0; n < N_TILES; ++n) {
        unsigned a[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; ++m)
#pragma unroll
            for (int part = 0; part < 4; ++part) {  // column half, then row half: the order of an A operand
                const float* pair = &weights[m][2 * n + part / 2][part % 2 * 2];
                a[m][part] = Mma<Element>::pack(pair[0], pair[1]);
            }
#pragma unroll
        for (int d = 0; d < SUM_COLS / 16; ++d) {
            unsigned b[4];
            load_matrices_transposed(b, Layout::right(y_lane, d) + n * 16 * Layout::ROW_BYTES);
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
                Mma<Element>::add(sums[m][2 * d], a[m], b[0], b[1]);
                Mma<Element>::add(sums[m][2 * d + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/// Calls `change(products, row, column)` for each product of this lane, counted from the warp's first row and the first that
/// passes by. `more` are products of the same places.
template <int M_TILES, int N_TILES, typename Change>
__device__ __forceinline__ void each_product(float (&products)[M_TILES][N_TILES][4], float (&more)[M_TILES][N_TILES][4],
                                             Change change) {
    const int lane = thread_place() % 32;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int n = 0; n < N_TILES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                change(products[m][n][i], more[m][n][i], m * 16 + lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2);
}
