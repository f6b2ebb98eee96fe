// A counting sort of a head's rows, a thread block a head.
<% include "lib/warp.cuh" %>

<% include "lib/row_order.cuh" %>

static_assert(THREADS == 32 * WARPS && 4 * ORDER_WORDS <= SMEM_BYTES);

extern "C" __global__ void __launch_bounds__(THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    const long long head = blockIdx.y, batch = blockIdx.z;
    const auto at = [&](const long long* stride) { return batch * stride[0] + head * stride[1]; };
    const int* full_counts = p.full_counts == nullptr ? nullptr : p.full_counts + at(p.full_counts_stride);
    // Whatever the caller says is the longest, each row has a bin.
    order_rows(p.counts + at(p.counts_stride), full_counts, p.rows, max(p.longest, 0), reinterpret_cast<int*>(smem),
               p.row_order + at(p.row_order_stride));
}
