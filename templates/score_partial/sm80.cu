// Scores of partial blocks: one warp has a block of queries and 32 blocks of keys, and takes those of them one by one that the
// mask function keeps in part. Most masks have few: the diagonal, the edges of a window or a document, the last block of a
// padded sequence.
//
// Lanes lie along the keys while the function is asked, and along the columns while means are made.
<% include "lib/warp.cuh" %>
<% include "lib/logit.cuh" %>
<% include "lib/block_class.cuh" %>

static_assert(THREADS == 32 * WARPS && BLOCK_KV % 32 == 0 && D % 8 == 0);

constexpr int VOTE_ROWS = 8;               // query rows between two votes on whether every key was kept
constexpr int WORDS = BLOCK_KV / 32;       // a bit a key
constexpr int PIECES = (D + 127) / 128;    // of 4 columns, that a lane has of a row

/// The keys of a block that the mask function keeps for a query of another, a bit each.
struct KeptKeys {
    unsigned bits[WORDS];
    bool all;
};

__device__ __forceinline__ KeptKeys kept_keys(const Params& p, const Functions& f, int batch, int head, int q_block, int kv_block) {
    const int lane = threadIdx.x % 32;
    const int first_q = q_block * BLOCK_Q, end_q = min(first_q + BLOCK_Q, p.seq_q);
    const int first_kv = kv_block * BLOCK_KV + lane;
    bool kept[WORDS] = {};
    for (int votes = first_q; votes < end_q; votes += VOTE_ROWS) {
        const int end = min(votes + VOTE_ROWS, end_q);
        bool all = true;
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            const int kv = first_kv + 32 * i;
            if (kv >= p.seq_kv) continue;
            for (int q = votes; q < end && !kept[i]; ++q) kept[i] = f.mask_mod(batch, head, q, kv);
            all &= kept[i];
        }
        if (__all_sync(WHOLE_WARP, all)) break;
    }
    KeptKeys keys;
    bool all = true;
#pragma unroll
    for (int i = 0; i < WORDS; ++i) {
        keys.bits[i] = __ballot_sync(WHOLE_WARP, kept[i]);
        all &= kept[i] || first_kv + 32 * i >= p.seq_kv;
    }
    keys.all = __all_sync(WHOLE_WARP, all);
    return keys;
}

/// Makes `mean` the mean of the rows whose bit is set: this lane's columns of it.
__device__ __forceinline__ void mean_of_kept_rows(const T* rows, long long stride, int width, const KeptKeys& keys,
                                                  float (&mean)[PIECES][4]) {
    int count = 0;
#pragma unroll
    for (int w = 0; w < WORDS; ++w) {
        count += __popc(keys.bits[w]);
#pragma unroll 1
        for (unsigned left = keys.bits[w]; left != 0; left &= left - 1) {
            const T* row = rows + (32 * w + __ffs(left) - 1) * stride;
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) {
                const int column = 128 * piece + 4 * static_cast<int>(threadIdx.x % 32);
                if (column >= width) continue;
                const uint2 loaded = __ldg(reinterpret_cast<const uint2*>(row + column));
                const T* elements = reinterpret_cast<const T*>(&loaded);
#pragma unroll
                for (int c = 0; c < 4; ++c) mean[piece][c] += static_cast<float>(elements[c]);
            }
        }
    }
#pragma unroll
    for (int piece = 0; piece < PIECES; ++piece)
#pragma unroll
        for (int c = 0; c < 4; ++c)
<% if constant.FINE > 0 %>            mean[piece][c] *= __frcp_rn(static_cast<float>(count));  // no division, which is a call that spills
<% else %>            mean[piece][c] /= static_cast<float>(count);
<% endif %>}

// The runs' loop spills at the 32 registers that the compiler strives for: it is told that 64 will do.
<% if constant.FINE > 0 %>extern "C" __global__ void __launch_bounds__(THREADS, 1024 / THREADS)
<% else %>extern "C" __global__ void __launch_bounds__(THREADS)
<% endif %>    TILEWRIGHT_KERNEL(const __grid_constant__ Params p, const __grid_constant__ Functions f) {
    const int head = blockIdx.y, batch = blockIdx.z;
    const int lane = threadIdx.x % 32;
    const int groups = ((p.kv_blocks + 31) / 32 + WARPS - 1) / WARPS;
    const int q_block = static_cast<int>(blockIdx.x) / groups;
    const int first_block = (static_cast<int>(blockIdx.x) % groups * WARPS + threadIdx.x / 32) * 32;
    if (first_block >= p.kv_blocks) return;  // whole warps leave: nothing below joins several

    const unsigned char* classes =
        p.classes + batch * p.classes_stride[0] + head * p.classes_stride[1] + q_block * p.classes_stride[2];
    const int mine = first_block + lane;
    unsigned partial = __ballot_sync(WHOLE_WARP, mine < p.kv_blocks && classes[mine] == PARTIAL);
    if (partial == 0) return;

    const int kv_head = head / (p.heads / p.kv_heads);
    const float* q_mean = p.q_mean + batch * p.q_mean_stride[0] + head * p.q_mean_stride[1] + q_block * p.q_mean_stride[2];
<% if constant.FINE == 0 %>    const float* k_mean = p.k_mean + batch * p.k_mean_stride[0] + kv_head * p.k_mean_stride[1];
<% endif %>    const T* k = p.k + batch * p.k_stride[0] + kv_head * p.k_stride[1];
    float* logits = p.logits + batch * p.logits_stride[0] + head * p.logits_stride[1] + q_block * p.logits_stride[2];

    // The product with a mean of which every lane has its columns.
    const auto score_of = [&](const float (&mean)[PIECES][4]) {
        float product = 0.0f;
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const int column = 128 * piece + 4 * lane;
            if (column >= p.head_dim) continue;
            const float4 q = __ldg(reinterpret_cast<const float4*>(q_mean + column));
            product = fmaf(q.x, mean[piece][0], fmaf(q.y, mean[piece][1], fmaf(q.z, mean[piece][2], fmaf(q.w, mean[piece][3], product))));
        }
        return sanitised(p.scale * warp_sum(product));
    };
    for (; partial != 0; partial &= partial - 1) {
        const int kv_block = first_block + __ffs(partial) - 1;
        const KeptKeys keys = kept_keys(p, f, batch, head, q_block, kv_block);
        const T* rows = k + static_cast<long long>(kv_block) * BLOCK_KV * p.k_stride[2];
<% if constant.FINE > 0 %>
        float top = minus_infinity();
#pragma unroll 1
        for (int run = 0; run < BLOCK_KV / FINE; ++run) {
            KeptKeys of_run = keys;
#pragma unroll
            for (int w = 0; w < WORDS; ++w) {
                const unsigned own = run * FINE / 32 == w ? ((1u << FINE) - 1) << run * FINE % 32 : 0u;
                of_run.bits[w] &= own;
            }
            unsigned any = 0;
#pragma unroll
            for (int w = 0; w < WORDS; ++w) any |= of_run.bits[w];
            if (any == 0) continue;
            float mean[PIECES][4] = {};
            mean_of_kept_rows(rows, p.k_stride[2], p.head_dim, of_run, mean);
            top = fmaxf(top, score_of(mean));
        }
        if (lane == 0) logits[kv_block] = top;
<% else %>
        float mean[PIECES][4] = {};
        if (keys.all) {
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) {
                const int column = 128 * piece + 4 * lane;
                if (column >= p.head_dim) continue;
                const float4 columns = __ldg(reinterpret_cast<const float4*>(k_mean + kv_block * p.k_mean_stride[2] + column));
                mean[piece][0] = columns.x, mean[piece][1] = columns.y, mean[piece][2] = columns.z, mean[piece][3] = columns.w;
            }
        } else {
            mean_of_kept_rows(rows, p.k_stride[2], p.head_dim, keys, mean);
        }
        const float score = score_of(mean);
        if (lane == 0) logits[kv_block] = score;
<% endif %>
    }
}
