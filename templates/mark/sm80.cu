// Lists to bits: a warp takes a row, and sets its bits in shared memory, CHUNK_WORDS words at a time.

static_assert(THREADS == 32 * WARPS && 4 * CHUNK_WORDS * WARPS <= SMEM_BYTES);

extern "C" __global__ void __launch_bounds__(THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = blockIdx.x * WARPS + warp;
    const long long head = blockIdx.y, batch = blockIdx.z;
    const auto at = [&](const long long* stride) { return batch * stride[0] + head * stride[1]; };
    if (p.finished != nullptr && blockIdx.x == 0 && threadIdx.x == 0) p.finished[batch * p.finished_stride[0] + head] = 0;
    if (row >= p.q_blocks) return;
    unsigned* bits = reinterpret_cast<unsigned*>(smem) + warp * CHUNK_WORDS;
    const int count = min(max(__ldg(p.kv_counts + at(p.kv_counts_stride) + row), 0), p.max_blocks);
    const int* list = p.kv_indices + at(p.kv_indices_stride) + row * p.kv_indices_stride[2];
    int* keep = p.keep + at(p.keep_stride) + row * p.keep_stride[2];

    for (int first = 0; first < p.words; first += CHUNK_WORDS) {
        for (int i = lane; i < CHUNK_WORDS; i += 32) bits[i] = 0;
        __syncwarp();
        for (int i = lane; i < count; i += 32) {
            const int block = __ldg(list + i);
            const int word = block / 32 - first;
            if (block >= 0 && block < p.kv_blocks && word >= 0 && word < CHUNK_WORDS) atomicOr(bits + word, 1u << block % 32);
        }
        __syncwarp();
        for (int i = lane; i < CHUNK_WORDS && first + i < p.words; i += 32) keep[first + i] = static_cast<int>(bits[i]);
        __syncwarp();
    }
}
