// From accumulators to a tensor.
#pragma once

/// Writes sums, times `factor(row)`, to `rows` existing rows of a tensor that begins at `to`. A quad has 64 consecutive bytes
/// of a row in four groups of columns.
template <typename Element, int M_TILES, int N_TILES, typename Factor>
__device__ __forceinline__ void write_sums(const float (&sums)[M_TILES][N_TILES][4], Element* to, long long stride, int rows,
                                           int columns, Factor factor) {
    const int lane = thread_place() % 32;
#pragma unroll
    for (int m = 0; m < M_TILES; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = m * 16 + half * 8 + lane / 4;
            const float by = factor(m, half);
#pragma unroll
            for (int n = 0; n < N_TILES; n += 4) {
                unsigned packed[4];
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    packed[i] = Mma<Element>::pack(sums[m][n + i][2 * half] * by, sums[m][n + i][2 * half + 1] * by);
                const uint4 chunk = transpose_quad(packed);
                const int column = (n + lane % 4) * 8;
                if (row < rows && column < columns) *reinterpret_cast<uint4*>(to + row * stride + column) = chunk;
            }
        }
}
