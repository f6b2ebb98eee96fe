// Block scores: logits = sanitised(Q̄ K̄ᵀ · scale), a product of f32 matrices on the tensor cores.
//
// The selection compares nearly equal scores, so products are split into three of TF32 (tf32.cuh). One thread block makes a
// TILE_Q x TILE_KV tile, DEPTH columns of the means at a time, while the next ones are on their way. The order of a product's
// terms is free: a lane's four neighbouring elements of a row serve as two columns of two products.
<% include "lib/thread.cuh" %>
<% include "lib/async_copy.cuh" %>
<% include "lib/logit.cuh" %>
<% include "lib/tf32.cuh" %>

constexpr int PIECE = 16;    // columns of two products
constexpr int PIECES = 2;    // in shared memory at once
constexpr int DEPTH = PIECE * PIECES;
constexpr int ROWS = TILE_Q + TILE_KV;
// Rows of 64 bytes, one behind the other: two of them are all banks. The pieces' begin in different halves of the banks, for
// eight threads that write a row write both.
constexpr unsigned PIECE_BYTES = ROWS * 4 * PIECE + 64;
constexpr unsigned STAGE_BYTES = PIECES * PIECE_BYTES;
constexpr int WARP_TILE = 32;  // query blocks of a warp, and key blocks
constexpr int WARPS_KV = TILE_KV / WARP_TILE;
constexpr int Q_TILES = WARP_TILE / 16;
constexpr int KV_TILES = WARP_TILE / 8;

static_assert(THREADS == 32 * (TILE_Q / WARP_TILE) * WARPS_KV && TILE_Q % WARP_TILE == 0 && TILE_KV % WARP_TILE == 0);
static_assert(2 * STAGE_BYTES <= SMEM_BYTES);

extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    const int head = blockIdx.y, batch = blockIdx.z;
    const int kv_tiles = (p.kv_blocks + TILE_KV - 1) / TILE_KV;
    const int first_q = static_cast<int>(blockIdx.x) / kv_tiles * TILE_Q;
    const int first_kv = static_cast<int>(blockIdx.x) % kv_tiles * TILE_KV;
    const float* q_mean = p.q_mean + batch * p.q_mean_stride[0] + head * p.q_mean_stride[1];
    const float* k_mean = p.k_mean + batch * p.k_mean_stride[0] + head / (p.heads / p.kv_heads) * p.k_mean_stride[1];

    // Eight threads bring a row: the query blocks' rows, then the key blocks'. What does not exist is 0.
    const auto start_copies = [&](int depth, unsigned stage) {
        constexpr int PASS = THREADS / 8;
        const int lane = threadIdx.x % 8, column = depth + lane * 4;
        const unsigned to = shared_address(smem) + stage + lane / 4 * PIECE_BYTES + lane % 4 * 16;
#pragma unroll
        for (int row = threadIdx.x / 8; row < ROWS; row += PASS) {
            const bool of_q = row < TILE_Q;
            const int block = of_q ? first_q + row : first_kv + row - TILE_Q;
            const bool present = block < (of_q ? p.q_blocks : p.kv_blocks) && column < p.head_dim;
            const float* from = of_q ? q_mean + block * p.q_mean_stride[2] : k_mean + block * p.k_mean_stride[2];
            copy_async<0, 0>(to + row * 4 * PIECE, from + column, present);
        }
        copy_commit();
    };

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;  // of the lanes that share a row
    const int warp_q = warp / WARPS_KV * WARP_TILE, warp_kv = warp % WARPS_KV * WARP_TILE;
    float dot[Q_TILES][KV_TILES][4] = {};
    start_copies(0, 0);
    unsigned stage = 0;
    for (int depth = 0; depth < p.head_dim; depth += DEPTH) {
        copy_wait<0>();
        __syncthreads();  // these columns are there, and no warp still reads those of the other stage
        if (depth + DEPTH < p.head_dim) start_copies(depth + DEPTH, stage ^ STAGE_BYTES);
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const float4* rows = reinterpret_cast<const float4*>(smem + stage + piece * PIECE_BYTES);
            unsigned high[Q_TILES][2][4], low[Q_TILES][2][4];  // of the pair of products
#pragma unroll
            for (int tile = 0; tile < Q_TILES; ++tile)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float4 q = rows[(warp_q + 16 * tile + 8 * half + group) * 4 + member];
                    const float elements[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        const Split split(elements[c]);
                        high[tile][c / 2][c % 2 * 2 + half] = split.high;
                        low[tile][c / 2][c % 2 * 2 + half] = split.low;
                    }
                }
#pragma unroll
            for (int n = 0; n < KV_TILES; ++n) {
                const float4 k = rows[(TILE_Q + warp_kv + 8 * n + group) * 4 + member];
                const Split b[4] = {Split(k.x), Split(k.y), Split(k.z), Split(k.w)};
#pragma unroll
                for (int pair = 0; pair < 2; ++pair)
#pragma unroll
                    for (int tile = 0; tile < Q_TILES; ++tile) {
                        add_tf32(dot[tile][n], low[tile][pair], b[2 * pair].high, b[2 * pair + 1].high);
                        add_tf32(dot[tile][n], high[tile][pair], b[2 * pair].low, b[2 * pair + 1].low);
                        add_tf32(dot[tile][n], high[tile][pair], b[2 * pair].high, b[2 * pair + 1].high);
                    }
            }
        }
        stage ^= STAGE_BYTES;
    }

    float* logits = p.logits + batch * p.logits_stride[0] + head * p.logits_stride[1];
    // Pairs of columns are written at once where they begin at a multiple of 8 bytes.
    const bool in_pairs = (reinterpret_cast<unsigned long long>(logits) | 4 * p.logits_stride[2]) % 8 == 0;
    bool strange = false;
#pragma unroll
    for (int tile = 0; tile < Q_TILES; ++tile)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int q = first_q + warp_q + 16 * tile + 8 * half + group;
            if (q >= p.q_blocks) continue;
            float* row = logits + q * p.logits_stride[2];
#pragma unroll
            for (int n = 0; n < KV_TILES; ++n) {
                const int kv = first_kv + warp_kv + 8 * n + 2 * member;
                const float* found = &dot[tile][n][2 * half];
                strange |= found[0] != found[0] || found[1] != found[1];
                const float pair[2] = {sanitised(found[0] * p.scale), sanitised(found[1] * p.scale)};
                if (in_pairs && kv + 1 < p.kv_blocks) {
                    *reinterpret_cast<float2*>(row + kv) = make_float2(pair[0], pair[1]);
                } else {
                    if (kv < p.kv_blocks) row[kv] = pair[0];
                    if (kv + 1 < p.kv_blocks) row[kv + 1] = pair[1];
                }
            }
        }
    if (!__any_sync(0xffffffffu, strange)) return;
    // What the split makes of infinities is no answer: plain FMAs give it. (-inf stands for NaN alone.)
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < WARP_TILE * WARP_TILE; i += 32) {
        const int q = first_q + warp_q + i / WARP_TILE, kv = first_kv + warp_kv + i % WARP_TILE;
        if (q >= p.q_blocks || kv >= p.kv_blocks) continue;
        float* logit = logits + q * p.logits_stride[2] + kv;
        if (__ldcg(logit) != minus_infinity()) continue;
        *logit = sanitised(p.scale * plain_product(q_mean + q * p.q_mean_stride[2], k_mean + kv * p.k_mean_stride[2], p.head_dim));
    }
}
