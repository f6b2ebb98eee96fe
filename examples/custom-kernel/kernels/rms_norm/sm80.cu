// One row of D elements is read by LANES neighbouring threads, 16 bytes each, and stays in their registers.

constexpr int LANES = D / 8;
static_assert(LANES <= 32 && (LANES & (LANES - 1)) == 0, "a row is summed within a warp");

extern "C" __global__ void __launch_bounds__(THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    const int lane = threadIdx.x % LANES;
    const int row = blockIdx.x * ROWS + threadIdx.x / LANES;
    const int head = blockIdx.y, batch = blockIdx.z;
    const bool exists = row < p.seq;  // the others still take part in the sums

    uint4 loaded = make_uint4(0, 0, 0, 0);
    if (exists) {
        const T* x = p.x + batch * p.x_stride[0] + head * p.x_stride[1] + row * p.x_stride[2];
        loaded = reinterpret_cast<const uint4*>(x)[lane];
    }
    const T* elements = reinterpret_cast<const T*>(&loaded);
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += static_cast<float>(elements[i]) * static_cast<float>(elements[i]);
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, offset);
    const float factor = rsqrtf(squares / D + p.epsilon);

    const uint4 weights = reinterpret_cast<const uint4*>(p.weight)[lane];
    uint4 result;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float weight = static_cast<float>(reinterpret_cast<const T*>(&weights)[i]);
        reinterpret_cast<T*>(&result)[i] = T(static_cast<float>(elements[i]) * factor * weight);
    }
    if (exists) {
        T* y = p.y + batch * p.y_stride[0] + head * p.y_stride[1] + row * p.y_stride[2];
        reinterpret_cast<uint4*>(y)[lane] = result;
    }
}
