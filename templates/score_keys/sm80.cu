// Block scores by keys: products of query means with the means of runs of FINE keys, the largest of each block.
//
// The query means lie in shared memory, rounded; those of keys pass by in tiles, one of which is on its way while the other
// is read. A warp has 32 query blocks and a part of a tile's columns, which is a number of whole key blocks.
<% include "lib/thread.cuh" %>
<% include "lib/math.cuh" %>
<% include "lib/async_copy.cuh" %>
<% include "lib/logit.cuh" %>
<% include "lib/mma.cuh" %>
<% include "lib/tile.cuh" %>
<% include "lib/tile_products.cuh" %>
<% include "lib/quad.cuh" %>

constexpr int PER_BLOCK = BLOCK_KV / FINE;                 // of a key block
constexpr int WARPS_Q = TILE_Q / 32;
constexpr int WARPS_KV = THREADS / 32 / WARPS_Q;
constexpr int WARP_COLUMNS = TILE_KV / WARPS_KV;
constexpr int BLOCKS = WARP_COLUMNS / PER_BLOCK;           // key blocks of a warp
// Products of 64 columns take more than half of the registers.
constexpr int CTAS = (WARP_COLUMNS > 32 ? 256 : 512) / THREADS;
using Layout = Tile<D>;

static_assert(WARP_COLUMNS % 16 == 0 && WARP_COLUMNS % PER_BLOCK == 0 && PER_BLOCK % 8 == 0 && TILE_Q % 32 == 0);
static_assert(int(Layout::ROW_BYTES) * (TILE_Q + 2 * TILE_KV) <= SMEM_BYTES);

extern "C" __global__ void __launch_bounds__(THREADS, CTAS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    const unsigned q_tile = shared_address(smem), k_tiles = q_tile + TILE_Q * Layout::ROW_BYTES;
    constexpr unsigned K_BYTES = TILE_KV * Layout::ROW_BYTES;

    const long long batch = blockIdx.z, head = blockIdx.y;
    const int spans = (p.runs + TILE_KV * SPAN - 1) / (TILE_KV * SPAN);
    const int first_q = static_cast<int>(blockIdx.x) / spans * TILE_Q;
    const int begin = static_cast<int>(blockIdx.x) % spans * TILE_KV * SPAN, end = min(begin + TILE_KV * SPAN, p.runs);
    const float* q_mean =
        p.q_mean + batch * p.q_mean_stride[0] + head * p.q_mean_stride[1] + first_q * p.q_mean_stride[2];
    const TileCopy<T, D, THREADS> copy{
        p.k_fine + batch * p.k_fine_stride[0] + blockIdx.y / (p.heads / p.kv_heads) * p.k_fine_stride[1],
        p.k_fine_stride[2], static_cast<int>(p.head_dim)};
    copy.template start<TILE_KV>(k_tiles, begin, p.runs);
    copy_commit();

    for (int i = threadIdx.x; i < TILE_Q * (D / 4); i += THREADS) {
        const int row = i / (D / 4), column = i % (D / 4) * 4;
        float4 piece = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first_q + row < p.q_blocks && column < p.head_dim)
            piece = __ldg(reinterpret_cast<const float4*>(q_mean + row * p.q_mean_stride[2] + column));
        const unsigned to = q_tile + Layout::offset(row, column / 8) + column % 8 * 2;
        store_shared(to, Mma<T>::pack(piece.x * p.scale, piece.y * p.scale));
        store_shared(to + 4, Mma<T>::pack(piece.z * p.scale, piece.w * p.scale));
    }

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int group = lane / 4, member = lane % 4;  // of the lanes that share a row
    const int warp_q = warp / WARPS_KV * 32, warp_kv = warp % WARPS_KV * WARP_COLUMNS;
    const unsigned q_lane = Layout::lane_by_columns(q_tile, warp_q, lane);
    float* logits = p.logits + batch * p.logits_stride[0] + head * p.logits_stride[1];
    unsigned at = 0;
    for (int first = begin; first < end; first += TILE_KV, at ^= 1) {
        copy_wait<0>();
        __syncthreads();  // this tile is there, and no warp still reads the other
        if (first + TILE_KV < end) copy.template start<TILE_KV>(k_tiles + (at ^ 1) * K_BYTES, first + TILE_KV, p.runs);
        copy_commit();
        if (first + warp_kv >= p.runs) continue;

        float product[2][WARP_COLUMNS / 8][4];
        multiply_tiles<T, D, 2, WARP_COLUMNS / 16>(product, q_lane,
                                                   Layout::lane_by_rows(k_tiles + at * K_BYTES, warp_kv, lane));
        // The last tile's columns are not all there.
        if (first + warp_kv + WARP_COLUMNS > p.runs)
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < WARP_COLUMNS / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        if (first + warp_kv + 8 * n + 2 * member + i % 2 >= p.runs) product[m][n][i] = -infinity();
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            const int kv = (first + warp_kv) / PER_BLOCK + block;
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    // A maximum leaves out what is no number.
                    float top = -infinity();
#pragma unroll
                    for (int n = 0; n < PER_BLOCK / 8; ++n) {
                        const float* pair = &product[m][block * (PER_BLOCK / 8) + n][2 * half];
                        top = fmaxf(top, fmaxf(pair[0], pair[1]));
                    }
                    top = fminf(quad_max(top), LARGEST_LOGIT);
                    const int q = first_q + warp_q + 16 * m + 8 * half + group;
                    if (member == 0 && q < p.q_blocks && kv < p.kv_blocks) logits[q * p.logits_stride[2] + kv] = top;
                }
        }
    }
}
