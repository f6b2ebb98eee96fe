// Row sums of d_out · out. A few neighbouring lanes share a row, 8 elements each, and take ROWS rows at once: all loads are
// issued before any is used, because the kernel has nothing to do but wait for memory.
<% include "lib/math.cuh" %>

constexpr int CHUNKS = D / 8;                                   // 16-byte pieces of a row
constexpr int LANES = CHUNKS <= 8 ? 8 : CHUNKS <= 16 ? 16 : 32;  // of a row; those left over (D = 96) idle
constexpr int ROWS_AT_ONCE = 32 / LANES * WARPS;                // rows that the block reads side by side
static_assert(THREADS == 32 * WARPS && CHUNKS <= LANES);

__device__ __forceinline__ float dot(uint4 a, uint4 b) {
    const T* x = reinterpret_cast<const T*>(&a);
    const T* y = reinterpret_cast<const T*>(&b);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(static_cast<float>(x[i]), static_cast<float>(y[i]), sum);
    return sum;
}

// 1 024 threads of a multiprocessor hide the latency.
extern "C" __global__ void __launch_bounds__(THREADS, 1024 / THREADS)
    TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    const long long head = blockIdx.y, batch = blockIdx.z;
    const int lane = threadIdx.x % LANES;
    const int first = blockIdx.x * (ROWS_AT_ONCE * ROWS) + threadIdx.x / LANES;
    const int left = lane * 8 < p.value_dim ? p.seq_q - first : 0;
    const T* out = p.out + batch * p.out_stride[0] + head * p.out_stride[1] + first * p.out_stride[2] + lane * 8;
    const T* d_out = p.d_out + batch * p.d_out_stride[0] + head * p.d_out_stride[1] + first * p.d_out_stride[2] + lane * 8;

    uint4 of_out[ROWS], of_d_out[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        of_out[i] = of_d_out[i] = make_uint4(0, 0, 0, 0);
        if (i * ROWS_AT_ONCE < left) {
            of_out[i] = __ldg(reinterpret_cast<const uint4*>(out));
            of_d_out[i] = __ldg(reinterpret_cast<const uint4*>(d_out));
        }
        out += ROWS_AT_ONCE * p.out_stride[2];
        d_out += ROWS_AT_ONCE * p.d_out_stride[2];
    }
    float sums[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        sums[i] = dot(of_out[i], of_d_out[i]);
#pragma unroll
        for (int offset = LANES / 2; offset > 0; offset /= 2) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], offset);
    }
    if (lane != 0) return;
    const float* lse = p.lse + batch * p.lse_stride[0] + head * p.lse_stride[1];
    const float* d_lse = p.d_lse ? p.d_lse + batch * p.d_lse_stride[0] + head * p.d_lse_stride[1] : nullptr;
    float* delta = p.delta + batch * p.delta_stride[0] + head * p.delta_stride[1];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int row = first + i * ROWS_AT_ONCE;
        if (row >= p.seq_q) return;
        const float less = d_lse ? __ldg(d_lse + row) : 0.0f;
        delta[row] = __ldg(lse + row) == -infinity() ? 0.0f : sums[i] - less;
    }
}
