// What a block's mean has as its gradient, for each of the block's rows.
#pragma once

/// Sums times `by` and, in every row, the elements of `mean`.
template <int M_TILES, int N_TILES>
__device__ __forceinline__ void add_mean(float (&sums)[M_TILES][N_TILES][4], float by, const float* mean, int columns) {
#pragma unroll
    for (int n = 0; n < N_TILES; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int column = n * 8 + thread_place() % 4 * 2 + i;
            const float more = column < columns ? __ldg(mean + column) : 0.0f;
#pragma unroll
            for (int m = 0; m < M_TILES; ++m) {
                sums[m][n][i] = fmaf(sums[m][n][i], by, more);
                sums[m][n][2 + i] = fmaf(sums[m][n][2 + i], by, more);
            }
        }
}
