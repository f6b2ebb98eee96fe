// The gradients of the key and value means of a block tail: one thread block has ROWS key blocks of a head. Query blocks
// of all heads of the group pass by; a warp has 16 of the key blocks and a share of the query blocks. What the warps have
// found is added up at the end.
<% include "lib/math.cuh" %>
<% include "lib/block_bits.cuh" %>
// Registers hold sums of 256 columns and little else. Where the two gradients have more, a thread block makes
// PART columns of one of them.
constexpr int PARTS = D + D_V > 256 ? (D + D_V) / PART : 1;
constexpr int SUM_COLUMNS = PARTS == 1 ? D + D_V : PART;
<% include "lib/tail_tiles.cuh" %>

constexpr int OWN_WORDS = ROWS > 32 ? ROWS / 32 : 1;  // of bits of the key blocks

static_assert(4 * (ROWS + TAKEN) * (D + D_V) <= SMEM_BYTES);
static_assert(PARTS == 1 || D % PART == 0 && D_V % PART == 0);

/// What is known of the query blocks that pass by, those `lane` and `lane` + 32 of them. A log-sum-exp of -inf says that
/// one drops nothing.
struct Queries {
    unsigned bits[WORDS];  // of the warp's key blocks
    float lse[WORDS], delta[WORDS];
    unsigned wanted[WORDS];  // bits of those that drop any of the thread block's key blocks

    __device__ __forceinline__ void begin(const Params& p, long long batch, long long head, int first, int first_kv,
                                          int rows) {
#pragma unroll
        for (int word = 0; word < WORDS; ++word) {
            const int place = first + 32 * word + static_cast<int>(threadIdx.x % 32);
            bits[word] = 0;
            lse[word] = -infinity();
            delta[word] = 0.0f;
            unsigned any = 0;
            if (place < p.q_blocks) {
                lse[word] = __ldg(p.tail_lse + batch * p.tail_lse_stride[0] + head * p.tail_lse_stride[1] + place);
                delta[word] =
                    __ldg(p.tail_delta + batch * p.tail_delta_stride[0] + head * p.tail_delta_stride[1] + place);
                const int* dropped = p.dropped + batch * p.dropped_stride[0] + head * p.dropped_stride[1] +
                                     place * p.dropped_stride[2] + first_kv / 32;
#pragma unroll
                for (int of = 0; of < OWN_WORDS; ++of) {
                    if (32 * of >= rows) continue;
                    const unsigned found =
                        static_cast<unsigned>(__ldg(dropped + of)) >> first_kv % 32 & bits_below(rows - 32 * of);
                    any |= found;
                    if (of == 16 * warp_group() / 32) bits[word] = found >> 16 * warp_group() % 32;
                }
            }
            any_found[word] = any;
        }
    }

    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int word = 0; word < WORDS; ++word)
            wanted[word] = __ballot_sync(ALL_LANES, any_found[word] != 0 && lse[word] != -infinity());
    }

   private:
    unsigned any_found[WORDS];
};

/// What the query blocks of the warp's share know, of the lanes that have it.
template <typename Known>
__device__ __forceinline__ Known of_query(const Known (&known)[WORDS], int query) {
    const int place = 16 * warp_share() + query;
    Known here = known[0];
    if constexpr (WORDS > 1)
        if (place >= 32) here = known[1];
    return __shfl_sync(ALL_LANES, here, place % 32);
}

/// The gradients of ROWS key blocks from `first_kv` on: K_COLUMNS of the keys' and V_COLUMNS of the values', from
/// `column` on.
template <int K_COLUMNS, int V_COLUMNS>
__device__ __forceinline__ void write_gradients(const Params& p, unsigned char* smem, int first_kv, int column,
                                                int kv_head, long long batch) {
    constexpr bool OF_KEYS = K_COLUMNS > 0, OF_VALUES = V_COLUMNS > 0;
    const SplitTile<D, ROWS> k_tile{shared_address(smem)};
    const SplitTile<D_V, ROWS> v_tile{k_tile.end()};
    const SplitTile<D, TAKEN> q_tile{v_tile.end()};
    const SplitTile<D_V, TAKEN> g_tile{q_tile.end()};
    const int lane = threadIdx.x % 32;
    const int group = lane / 4, member = lane % 4;  // of the lanes that share a row
    const int rows = min(ROWS, p.kv_blocks - first_kv);

    const int group_heads = p.heads / p.kv_heads;
    const int chunks = (p.q_blocks + TAKEN - 1) / TAKEN;  // of a head
    Arriving<D, TAKEN> queries;
    Arriving<D_V, TAKEN> gradients;
    Queries next;
    const auto begin = [&](int of_group, int first) {
        const long long head = kv_head * group_heads + of_group;
        next.begin(p, batch, head, first, first_kv, rows);
        queries.begin(p.q_mean + batch * p.q_mean_stride[0] + head * p.q_mean_stride[1] + first * p.q_mean_stride[2],
                      p.q_mean_stride[2], p.q_blocks - first, p.head_dim);
        gradients.begin(p.g + batch * p.g_stride[0] + head * p.g_stride[1] + first * p.g_stride[2], p.g_stride[2],
                        p.q_blocks - first, p.value_dim);
    };
    if constexpr (HAS_ROOM) begin(0, 0);
    const auto rows_of = [&](const float* mean, const long long* stride) {
        return mean + batch * stride[0] + kv_head * stride[1] + first_kv * stride[2];
    };
    store_own(k_tile, rows_of(p.k_mean, p.k_mean_stride), p.k_mean_stride[2], rows, p.head_dim);
    if constexpr (OF_KEYS)
        store_own(v_tile, rows_of(p.v_mean, p.v_mean_stride), p.v_mean_stride[2], rows, p.value_dim);

    const float scale = p.scale * LOG2_E;
    const auto keys_of = [&](int row) {
        return static_cast<float>(min(p.block_kv, p.seq_kv - (first_kv + row) * p.block_kv));
    };
    // Of rows `group` and `group` + 8 of the warp's. Those that are not there have no bits.
    const int of_warp = 16 * warp_group() + group;
    const float log_keys[2] = {log2f(keys_of(of_warp)), log2f(keys_of(of_warp + 8))};

    constexpr int NONE = 8;  // an array of none is no array
    float dk[OF_KEYS ? K_COLUMNS / 8 : NONE / 8][4] = {}, dv[OF_VALUES ? V_COLUMNS / 8 : NONE / 8][4] = {};
    for (int turn = 0; turn < group_heads * chunks; ++turn) {
        if (turn > 0) __syncthreads();
        if constexpr (!HAS_ROOM) begin(turn / chunks, turn % chunks * TAKEN);
        next.finish();
        const Queries now = next;
        // Query blocks that drop none of these may hold anything.
        const auto is_wanted = [&](int row) { return has_bit(now.wanted, row); };
        const bool is_strange_q = queries.finish(q_tile, is_wanted);
        const bool is_strange_g = gradients.finish(g_tile, is_wanted);
        // A query block of means that are no numbers makes NaN of its weights, one of such sums of gradients NaN of the
        // gradients of values: key blocks that it does not drop get nothing of it.
        unsigned strange_q = 0, strange_g = 0;
        if (__syncthreads_or(is_strange_q || is_strange_g)) {
            strange_q = q_tile.strange_of_share();
            strange_g = g_tile.strange_of_share();
            __syncthreads();
            q_tile.clear_of_share(strange_q);
            g_tile.clear_of_share(strange_g);
            __syncthreads();
        }
        if (HAS_ROOM && turn + 1 < group_heads * chunks) begin((turn + 1) / chunks, (turn + 1) % chunks * TAKEN);
        unsigned of_share = now.wanted[0];
        if constexpr (WORDS > 1)
            if (warp_share() >= 2) of_share = now.wanted[1];
        if ((of_share >> 16 * warp_share() % 32 & 0xffffu) == 0) continue;

        float weight[2][4];
        multiply(weight, k_tile, q_tile);
        float dt[2][4];
        if constexpr (OF_KEYS) multiply(dt, v_tile, g_tile);
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const int query = 8 * n + 2 * member + c;
                const unsigned bits = of_query(now.bits, query);
                const float lse = of_query(now.lse, query), delta = of_query(now.delta, query);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float& to = weight[n][2 * half + c];
                    float score = fmaf(to, scale, log_keys[half]);
                    if (strange_q >> query & 1) score = not_a_number();
                    const bool is_dropped = lse != -infinity() && bits >> (group + 8 * half) & 1;
                    to = is_dropped ? exp2_approx(fmaf(lse, -LOG2_E, score)) : 0.0f;
                    if constexpr (OF_KEYS) {
                        float& of_score = dt[n][2 * half + c];
                        if (strange_g >> query & 1) of_score = not_a_number();
                        // What has no weight has no gradient, whatever else it has.
                        of_score = to == 0.0f ? 0.0f : to * (of_score - delta);
                    }
                    if (to != 0.0f && strange_g >> query & 1) to = not_a_number();
                }
            }
        if constexpr (OF_KEYS) add_rows<K_COLUMNS>(dk, dt, q_tile, column);
        if constexpr (OF_VALUES) add_rows<V_COLUMNS>(dv, weight, g_tile, column);
    }

    float* results = reinterpret_cast<float*>(smem);
    const auto place_of = [&](float* gradient, const long long* stride) {
        return gradient + batch * stride[0] + kv_head * stride[1] + first_kv * stride[2] + column;
    };
    if constexpr (OF_KEYS)
        write_merged<K_COLUMNS>(dk, results, place_of(p.dk_mean, p.dk_mean_stride), p.dk_mean_stride[2], rows,
                                p.head_dim - column, [&](int row) { return p.scale / keys_of(row); });
    if constexpr (OF_VALUES)
        write_merged<V_COLUMNS>(dv, results, place_of(p.dv_mean, p.dv_mean_stride), p.dv_mean_stride[2], rows,
                                p.value_dim - column, [&](int row) { return 1.0f / keys_of(row); });
}

extern "C" __global__ void __launch_bounds__(THREADS, 8 / WARPS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    const int first_kv = blockIdx.x / PARTS * ROWS, part = blockIdx.x % PARTS;
    const int kv_head = blockIdx.y, batch = blockIdx.z;
    if constexpr (PARTS == 1)
        write_gradients<D, D_V>(p, smem, first_kv, 0, kv_head, batch);
    else if (part < D / PART)
        write_gradients<PART, 0>(p, smem, first_kv, part * PART, kv_head, batch);
    else
        write_gradients<0, PART>(p, smem, first_kv, (part - D / PART) * PART, kv_head, batch);
}
