// Selection: one warp picks the key blocks of one row.
<% include "lib/select_row.cuh" %>
<% include "lib/row_order.cuh" %>

static_assert(THREADS == 32 * WARPS && 4 * THREADS <= SMEM_BYTES && 4 * ORDER_WORDS <= SMEM_BYTES);

extern "C" __global__ void __launch_bounds__(THREADS, 1024 / THREADS)
    TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    const int warp = threadIdx.x / 32;
    int* scratch = reinterpret_cast<int*>(smem) + 32 * warp;

    const int q = blockIdx.x * WARPS + warp, head = blockIdx.y, batch = blockIdx.z;
    if (q < p.q_blocks) {
        const auto at = [&](const long long* stride) -> long long { return batch * stride[0] + head * stride[1] + q * stride[2]; };
        RowInMemory<false> row;
        row.words = reinterpret_cast<int*>(p.logits + at(p.logits_stride));
        row.classes = p.classes == nullptr ? nullptr : p.classes + at(p.classes_stride);
        row.blocks = p.kv_blocks;
        select_row(row, [&] { return result_of(p, batch, head, q); }, p.top_k, p.top_p, scratch);
    }
    if (p.row_order != nullptr && p.finished != nullptr) order_query_blocks_when_last(p, reinterpret_cast<int*>(smem));
}
