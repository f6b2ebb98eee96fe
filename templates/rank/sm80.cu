// Scores and selection: one thread block has ROWS query blocks of a head and all its key blocks.
//
// The query means lie in shared memory; a warp takes 16 key blocks at a time, whose means come straight to registers, for
// no other warp wants them. The logits go to shared memory, where each row is then one warp's to select from.
//
// The selection compares nearly equal scores, so products are split into three of TF32 (tf32.cuh). The order of a
// product's terms is free: a lane's four neighbouring elements of a row serve as two columns of two products.
<% include "lib/select_row.cuh" %>
<% include "lib/tf32.cuh" %>
<% include "lib/row_order.cuh" %>

constexpr int TILES = (ROWS + 15) / 16;      // of 16 query blocks
constexpr int STEPS = D / 8;                 // of 8 columns
constexpr int FRAGMENTS = TILES * STEPS * 32;  // a lane's four elements of a product's operand
constexpr int PITCH = CAPACITY + 8;          // four rows fall into different banks, 8 bytes at a time
// Columns of the key means on their way at once: in registers, of which there may be few.
constexpr int CHUNK = WARPS * CTAS > 16 ? 16 : 64;
constexpr int PARTS = CHUNK / 16;

using Row = RowOf<CAPACITY, 2048 / (WARPS * CTAS)>::Type;

static_assert(THREADS == 32 * WARPS && D % 32 == 0 && CAPACITY % PADDING == 0);
static_assert(ORDER_WORDS <= ROWS * PITCH && 4 * (2 * 4 * FRAGMENTS + ROWS * PITCH + THREADS) <= SMEM_BYTES);

extern "C" __global__ void __launch_bounds__(THREADS, CTAS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    uint4* q_high = reinterpret_cast<uint4*>(smem);  // [TILES][STEPS][32]
    uint4* q_low = q_high + FRAGMENTS;
    float* logits = reinterpret_cast<float*>(q_low + FRAGMENTS);  // [ROWS][PITCH]
    int* scratch = reinterpret_cast<int*>(logits + ROWS * PITCH);

    const long long head = blockIdx.y, batch = blockIdx.z;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;  // of the lanes that share a row
    const int first_q = blockIdx.x * ROWS;
    const int rows = min(ROWS, p.q_blocks - first_q);
    const float* q_mean =
        p.q_mean + batch * p.q_mean_stride[0] + head * p.q_mean_stride[1] + first_q * p.q_mean_stride[2];
    const float* k_mean =
        p.k_mean + batch * p.k_mean_stride[0] + blockIdx.y / (p.heads / p.kv_heads) * p.k_mean_stride[1];

    // The query means as the products want them: split, and the elements of a lane side by side.
    for (int i = threadIdx.x; i < 16 * TILES * (D / 4); i += THREADS) {
        const int row = i / (D / 4), column = i % (D / 4) * 4;
        float4 piece = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (row < rows && column < p.head_dim)
            piece = __ldg(reinterpret_cast<const float4*>(q_mean + row * p.q_mean_stride[2] + column));
        const float elements[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int step = row / 16 * STEPS + column / 16 * 2 + c / 2;
            const int place = (step * 32 + row % 8 * 4 + column % 16 / 4) * 4 + c % 2 * 2 + row % 16 / 8;
            const Split split(elements[c]);
            reinterpret_cast<unsigned*>(q_high)[place] = split.high;
            reinterpret_cast<unsigned*>(q_low)[place] = split.low;
        }
    }
    __syncthreads();

    for (int first_kv = warp * 16; first_kv < p.kv_blocks; first_kv += WARPS * 16) {
        // This lane's row of each 8 key blocks; past the last one it is the last.
        const float* source[2];
#pragma unroll
        for (int n = 0; n < 2; ++n)
            source[n] = k_mean + min(first_kv + 8 * n + group, p.kv_blocks - 1) * p.k_mean_stride[2] + 4 * member;
        float4 next[PARTS][2];
        const auto fetch = [&](int chunk) {
#pragma unroll
            for (int part = 0; part < PARTS; ++part)
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    const int column = chunk + 16 * part;
                    next[part][n] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    if (column < D && column + 4 * member < p.head_dim)
                        next[part][n] = __ldg(reinterpret_cast<const float4*>(source[n] + column));
                }
        };
        float dot[TILES][2][4] = {};
        fetch(0);
#pragma unroll
        for (int chunk = 0; chunk < D; chunk += CHUNK) {
            float4 k[PARTS][2];
#pragma unroll
            for (int part = 0; part < PARTS; ++part)
#pragma unroll
                for (int n = 0; n < 2; ++n) k[part][n] = next[part][n];
            if (chunk + CHUNK < D) fetch(chunk + CHUNK);
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                if (chunk + 16 * part >= D) break;
                unsigned high[TILES][2][4], low[TILES][2][4];
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                    for (int pair = 0; pair < 2; ++pair) {
                        const int step = tile * STEPS + chunk / 8 + 2 * part + pair;
                        const uint4 h = q_high[step * 32 + lane], l = q_low[step * 32 + lane];
                        high[tile][pair][0] = h.x, high[tile][pair][1] = h.y, high[tile][pair][2] = h.z, high[tile][pair][3] = h.w;
                        low[tile][pair][0] = l.x, low[tile][pair][1] = l.y, low[tile][pair][2] = l.z, low[tile][pair][3] = l.w;
                    }
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    const Split b[4] = {Split(k[part][n].x), Split(k[part][n].y), Split(k[part][n].z), Split(k[part][n].w)};
#pragma unroll
                    for (int pair = 0; pair < 2; ++pair)
#pragma unroll
                        for (int tile = 0; tile < TILES; ++tile) {
                            add_tf32(dot[tile][n], low[tile][pair], b[2 * pair].high, b[2 * pair + 1].high);
                            add_tf32(dot[tile][n], high[tile][pair], b[2 * pair].low, b[2 * pair + 1].low);
                            add_tf32(dot[tile][n], high[tile][pair], b[2 * pair].high, b[2 * pair + 1].high);
                        }
                }
            }
        }
        bool strange = false;
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int row = 16 * tile + 8 * half + group;
                    const float* pair = &dot[tile][n][2 * half];
                    strange |= pair[0] != pair[0] || pair[1] != pair[1];
                    if (row < rows)
                        *reinterpret_cast<float2*>(logits + row * PITCH + first_kv + 8 * n + 2 * member) =
                            make_float2(sanitised(pair[0] * p.scale), sanitised(pair[1] * p.scale));
                }
        if (__any_sync(WHOLE_WARP, strange)) {
            // What the split makes of infinities is no answer: plain FMAs give it. (-inf stands for NaN alone.)
            __syncwarp();
            for (int i = lane; i < rows * 16; i += 32) {
                const int kv = first_kv + i % 16;
                float& logit = logits[i / 16 * PITCH + kv];
                if (kv >= p.kv_blocks || logit != minus_infinity()) continue;
                const float* q = q_mean + i / 16 * p.q_mean_stride[2];
                logit = sanitised(p.scale * plain_product(q, k_mean + kv * p.k_mean_stride[2], p.head_dim));
            }
        }
    }
    __syncthreads();

    for (int i = warp; i < rows; i += WARPS) {
        const int q = first_q + i;
        Row row;
        row.words = reinterpret_cast<int*>(logits + i * PITCH);
        row.classes = nullptr;
        if (p.classes != nullptr)
            row.classes = p.classes + blockIdx.z * p.classes_stride[0] + blockIdx.y * p.classes_stride[1] + q * p.classes_stride[2];
        row.blocks = p.kv_blocks;
        if (p.partial_logits != nullptr && p.classes != nullptr) {
            const float* partial = p.partial_logits + blockIdx.z * p.partial_logits_stride[0] +
                                   blockIdx.y * p.partial_logits_stride[1] + q * p.partial_logits_stride[2];
            for (int kv = lane; kv < p.kv_blocks; kv += 32)
                if (row.classes[kv] == PARTIAL) logits[i * PITCH + kv] = __ldg(partial + kv);
            __syncwarp();
        }
        select_row(row, [&] { return result_of(p, blockIdx.z, blockIdx.y, q); }, p.top_k, p.top_p, scratch + 32 * warp);
    }

    if (p.row_order != nullptr && p.finished != nullptr) order_query_blocks_when_last(p, reinterpret_cast<int*>(logits));
}
