// Block scores: logits = sanitised(Q̄ K̄ᵀ · scale), a product of f32 matrices.
//
// The selection compares nearly equal scores, so the products are f32 FMAs; the tensor cores' TF32 would reorder
// blocks. One thread block makes a TILE_Q x TILE_KV tile; a thread owns every 8th query and every 16th key of it.
<% include "lib/logit.cuh" %>

constexpr int DEPTH = 32;       // columns of the means held in shared memory at once
constexpr int PITCH = DEPTH + 4;  // eight rows 36 floats apart fall into different banks, 16 bytes at a time
constexpr int QUERIES = TILE_Q / 8;  // of a thread
constexpr int KEYS = TILE_KV / 16;

static_assert(THREADS == 128 && TILE_Q % 16 == 0 && TILE_KV % 16 == 0);

/// Moves ROWS x DEPTH pieces of a matrix to shared memory by way of registers, where the next piece waits while the
/// current one is in use. What does not exist is 0.
template <int ROWS>
struct Piece {
    static constexpr int LANES = DEPTH / 4;
    static constexpr int PASS = THREADS / LANES;  // rows moved at once
    static constexpr int PASSES = ROWS / PASS;

    float4 held[PASSES];
    const float* source;  // this thread's first row
    long long stride;
    int rows;  // that exist, from this thread's first on
    int row;
    int column;

    __device__ __forceinline__ Piece(const float* matrix, long long row_stride, int first_row, int all_rows)
        : stride(row_stride), row(threadIdx.x / LANES), column(threadIdx.x % LANES * 4) {
        source = matrix + (first_row + row) * stride;
        rows = all_rows - first_row - row;
    }

    __device__ __forceinline__ void load(int depth, int width) {
#pragma unroll
        for (int i = 0; i < PASSES; ++i) {
            held[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (i * PASS < rows && depth + column < width) {
                held[i] = __ldg(reinterpret_cast<const float4*>(source + i * PASS * stride + depth + column));
            }
        }
    }

    __device__ __forceinline__ void store(float* tile) const {
#pragma unroll
        for (int i = 0; i < PASSES; ++i) {
            *reinterpret_cast<float4*>(tile + (row + i * PASS) * PITCH + column) = held[i];
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    float* q_tile = reinterpret_cast<float*>(smem);
    float* k_tile = q_tile + TILE_Q * PITCH;

    const int head = blockIdx.y, batch = blockIdx.z;
    const int kv_head = head / (p.heads / p.kv_heads);
    const int kv_tiles = (p.kv_blocks + TILE_KV - 1) / TILE_KV;
    const int first_q = static_cast<int>(blockIdx.x) / kv_tiles * TILE_Q;
    const int first_kv = static_cast<int>(blockIdx.x) % kv_tiles * TILE_KV;
    const int q_lane = threadIdx.x / 16, kv_lane = threadIdx.x % 16;

    Piece<TILE_Q> q_piece(p.q_mean + batch * p.q_mean_stride[0] + head * p.q_mean_stride[1], p.q_mean_stride[2],
                          first_q, p.q_blocks);
    Piece<TILE_KV> k_piece(p.k_mean + batch * p.k_mean_stride[0] + kv_head * p.k_mean_stride[1], p.k_mean_stride[2],
                           first_kv, p.kv_blocks);

    float dot[QUERIES][KEYS] = {};
    q_piece.load(0, p.head_dim);
    k_piece.load(0, p.head_dim);
    for (int depth = 0; depth < p.head_dim; depth += DEPTH) {
        q_piece.store(q_tile);
        k_piece.store(k_tile);
        __syncthreads();
        if (depth + DEPTH < p.head_dim) {
            q_piece.load(depth + DEPTH, p.head_dim);
            k_piece.load(depth + DEPTH, p.head_dim);
        }
#pragma unroll 1
        for (int d = 0; d < DEPTH; d += 4) {
            float4 k[KEYS];
#pragma unroll
            for (int j = 0; j < KEYS; ++j) {
                k[j] = *reinterpret_cast<const float4*>(k_tile + (kv_lane + 16 * j) * PITCH + d);
            }
#pragma unroll
            for (int i = 0; i < QUERIES; ++i) {
                const float4 q = *reinterpret_cast<const float4*>(q_tile + (q_lane + 8 * i) * PITCH + d);
#pragma unroll
                for (int j = 0; j < KEYS; ++j) {
                    dot[i][j] = fmaf(q.x, k[j].x, dot[i][j]);
                    dot[i][j] = fmaf(q.y, k[j].y, dot[i][j]);
                    dot[i][j] = fmaf(q.z, k[j].z, dot[i][j]);
                    dot[i][j] = fmaf(q.w, k[j].w, dot[i][j]);
                }
            }
        }
        __syncthreads();
    }

    float* logits = p.logits + batch * p.logits_stride[0] + head * p.logits_stride[1];
#pragma unroll
    for (int i = 0; i < QUERIES; ++i) {
        const int q = first_q + q_lane + 8 * i;
        if (q >= p.q_blocks) break;
#pragma unroll
        for (int j = 0; j < KEYS; ++j) {
            const int kv = first_kv + kv_lane + 16 * j;
            if (kv < p.kv_blocks) logits[q * p.logits_stride[2] + kv] = sanitised(dot[i][j] * p.scale);
        }
    }
}
