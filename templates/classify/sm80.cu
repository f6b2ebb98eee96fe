// Block classes: one warp evaluates the mask function over one block, lanes along the keys, and stops as soon as it
// has seen both answers.
<% include "lib/block_class.cuh" %>

static_assert(THREADS == 32 * WARPS && BLOCK_KV % 32 == 0);

constexpr int VOTE_ROWS = 8;  // query rows between two votes on whether to stop

extern "C" __global__ void __launch_bounds__(THREADS)
    TILEWRIGHT_KERNEL(const __grid_constant__ Params p, const __grid_constant__ Functions f) {
    constexpr unsigned WHOLE_WARP = 0xffffffffu;
    const int head = blockIdx.y, batch = blockIdx.z;
    const int lane = threadIdx.x % 32;
    const int groups = (p.kv_blocks + WARPS - 1) / WARPS;
    const int q_block = static_cast<int>(blockIdx.x) / groups;
    const int kv_block = static_cast<int>(blockIdx.x) % groups * WARPS + threadIdx.x / 32;
    if (kv_block >= p.kv_blocks) return;  // whole warps leave: nothing below joins several

    const int first_q = q_block * BLOCK_Q, first_kv = kv_block * BLOCK_KV;
    const int end_q = min(first_q + BLOCK_Q, p.seq_q), end_kv = min(first_kv + BLOCK_KV, p.seq_kv);
    bool some_kept = false, some_dropped = false;
    for (int votes = first_q; votes < end_q; votes += VOTE_ROWS) {
        const int end = min(votes + VOTE_ROWS, end_q);
        for (int q = votes; q < end; ++q) {
#pragma unroll
            for (int i = 0; i < BLOCK_KV / 32; ++i) {
                const int kv = first_kv + 32 * i + lane;
                if (kv < end_kv) {
                    const bool kept = f.mask_mod(batch, head, q, kv);
                    some_kept |= kept;
                    some_dropped |= !kept;
                }
            }
        }
        some_kept = __any_sync(WHOLE_WARP, some_kept);
        some_dropped = __any_sync(WHOLE_WARP, some_dropped);
        if (some_kept && some_dropped) break;
    }
    if (lane == 0) {
        p.classes[batch * p.classes_stride[0] + head * p.classes_stride[1] + q_block * p.classes_stride[2] + kv_block] =
            !some_kept ? EMPTY : some_dropped ? PARTIAL : FULL;
    }
}
