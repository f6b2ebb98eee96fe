// Block-sparse attention, backward by keys, for Hopper: copies by the copy engine (TMA), products of a warpgroup (wgmma).
//
// Thread blocks stay for many tiles of 64 keys of one key head, and two blocks share a multiprocessor: one's products run under the
// other's arithmetic. Of its last warpgroup one warp copies, STEP_Q queries of the lists at a time with their d_out into a slot of a
// ring, and one brings what is known of them; they go on with the next tile while the sums of one are written. The other warpgroup
// computes transposed scores, which are in its registers as the operand of the next product.
<% include "lib/thread.cuh" %>
<% include "lib/math.cuh" %>
<% include "lib/mma.cuh" %>
<% include "lib/quad.cuh" %>
<% include "lib/given_order.cuh" %>
<% include "lib/query_blocks.cuh" %>
<% include "lib/mbarrier.cuh" %>
<% include "lib/tma.cuh" %>
<% include "lib/tile_queue.cuh" %>
<% include "lib/query_statistics.cuh" %>
<% include "lib/subtrahend.cuh" %>
<% include "lib/write_sums.cuh" %>
<% include "lib/add_mean.cuh" %>
<% if constant.TAIL == constant.TAIL_ROW %><% include "lib/part_of_queries.cuh" %>
<% endif %><% set wgmma_widths = [64, constant.STEP_Q, constant.D] %>
<% include "lib/wgmma.cuh" %>

constexpr int TILE_KV = 64;  // keys of a tile
constexpr int TILES_PER_BLOCK = BLOCK_KV / TILE_KV;
// Queries computed at a time, of the STEP_Q of a slot, all where registers allow it: products of 64 × 128 read 96 bytes of shared memory a
// cycle, those of 64 × 64 all 128 that it has.
constexpr int PART_Q = HAS_SCORE_MOD || !Mma<T>::RANGE_OF_F32 ? 64 : STEP_Q;
constexpr int PARTS = STEP_Q / PART_Q;
static_assert(D == D_V, "one kind of tile");
static_assert(STEP_Q == PART_Q * PARTS && THREADS == 256 && BLOCK_KV == TILE_KV * TILES_PER_BLOCK && BLOCK_Q % STEP_Q == 0);

using Tile = SwizzledTile<TILE_KV, D>;
using QTile = SwizzledTile<STEP_Q, D>;
using Steps = <% if constant.TAIL == constant.TAIL_ROW %>PartOfQueries<% else %>QueryBlocks<% endif %><STEP_Q, BLOCK_Q / STEP_Q>;
static_assert(TAIL == TAIL_NONE || !HAS_SCORE_MOD, "what a score function makes of a mean is not defined");
using Products = float[PART_Q / 8][4];
using Operand = unsigned[PART_Q / 16][4];
using Sums = float[1][D / 8][4];

// Whether delta is subtracted by a product: the type must have the range of f32.
constexpr bool DELTA_BY_PRODUCT = Mma<T>::RANGE_OF_F32;
// A slot's statistics: lse of its queries, then delta, as numbers or as rows of an operand.
constexpr unsigned LSE = 0, DELTA = STEP_Q * sizeof(float);
constexpr unsigned STATISTICS_BYTES = DELTA + STEP_Q * (DELTA_BY_PRODUCT ? Subtrahend::ROW_BYTES : sizeof(float));

/// Where a query's are: in an order that gives a thread its two columns of two neighbouring pieces in one load.
__device__ __forceinline__ int statistics_place(int query) {
    return query / 16 * 16 + query % 8 / 2 * 4 + query % 16 / 8 * 2 + query % 2;
}

// Shared memory, from a multiple of 1024 on: K, V, the ring's tiles of q and d_out, the statistics of each slot's queries, the first
// operand that subtracts delta, barriers, and what the copying warps tell the others of a slot. The ring has the slots that fit, up to 4.
constexpr unsigned SLOT_BYTES = 2 * QTile::BYTES;
constexpr unsigned NOTE_BYTES = 16;
constexpr int MAILS = 2;
constexpr int FITTING = (SMEM_BYTES - 1024 - 2 * Tile::BYTES) / (SLOT_BYTES + STATISTICS_BYTES);
constexpr int STAGES = FITTING < 4 ? FITTING : 4;
constexpr unsigned STATISTICS = 2 * Tile::BYTES + STAGES * SLOT_BYTES;
constexpr unsigned SUBTRAHEND = STATISTICS + STAGES * STATISTICS_BYTES;
constexpr unsigned BARRIERS = SUBTRAHEND + (DELTA_BY_PRODUCT ? Subtrahend::FIRST_BYTES : 0);
constexpr unsigned NOTES = BARRIERS + (2 * STAGES + 2 + 2 * MAILS) * Barrier::BYTES;
static_assert(STAGES >= 2 && NOTES % 16 == 0 && 4 * MAILS <= NOTE_BYTES && NOTES + (STAGES + 2) * NOTE_BYTES <= SMEM_BYTES);
using Place = RingPlace<STAGES>;
using MailPlace = RingPlace<MAILS>;

// Registers are handed out anew among the warpgroups.
constexpr int COPY_REGISTERS = STEP_Q == 64 ? 24 : 32, COMPUTE_REGISTERS = 256 - COPY_REGISTERS;
// Whether the statistics are read while products are under way: what holds few registers gains by it, what holds many loses.
constexpr bool READ_EARLY = D == 64;
// Whether gradients are made of pairs: their type must have the range of what comes before the weights are multiplied in.
constexpr bool IN_PAIRS = Mma<T>::RANGE_OF_F32 && !HAS_SCORE_MOD && !HAS_MASK_MOD;

<% include "backward_kv/sm90_copies.cuh" %>

/// Rows of queries that attend to nothing become 0, whatever they hold: 0 · NaN must not reach their keys.
__device__ __forceinline__ void clear_empty_rows(unsigned char* slot, const float* lse) {
    for (int i = thread_place(); i < STEP_Q * 2 * QTile::PANELS * 8; i += 128) {
        const int row = i / 8 % STEP_Q, panel = i / 8 / STEP_Q;  // of q, then of d_out
        if (lse[statistics_place(row)] == infinity())
            *reinterpret_cast<uint4*>(slot + panel * QTile::PANEL_BYTES + row * 128 + i % 8 * 16) = make_uint4(0, 0, 0, 0);
    }
    publish_shared();
    NamedBarrier{1, 128}.wait();
}

/// Calls `change(product, n, i, key, query)` for each product of this thread, key and query counted from the tile's and the part's
/// first.
template <typename Change>
__device__ __forceinline__ void each_product(Products& products, Change change) {
    const int lane = thread_place() % 32, first_key = thread_place() / 32 * 16;
#pragma unroll
    for (int n = 0; n < PART_Q / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            change(products[n][i], n, i, first_key + lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2);
}

__device__ __forceinline__ void pack(Operand& packed, const Products& products) {
#pragma unroll
    for (int k = 0; k < PART_Q / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            packed[k][i] = Mma<T>::pack(products[2 * k + i / 2][i % 2 * 2], products[2 * k + i / 2][i % 2 * 2 + 1]);
}

/// Begins the products of keys with queries, or of values with d_out. To be committed.
__device__ __forceinline__ void begin_products(Products& products, unsigned keys, unsigned queries) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
        Wgmma<T, PART_Q>::multiply(products, Tile::along_rows(keys, k), QTile::along_rows(queries, k), k > 0);
}

/// The work of the computing warpgroup.
__device__ __forceinline__ void compute_tiles(const Params& p, const Functions& f, Shared shared, unsigned char* smem) {
    const float to_exponent = HAS_SCORE_MOD ? LOG2_E : LOG2_E * p.scale;
    /// The sums of keys or values go on with the transposed tile of a slot.
    const auto start_sums = [&](Sums& sums, const Operand& operand, unsigned tile) {
        hold(sums[0]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < PART_Q / 16; ++k)
            Wgmma<T, D>::multiply_down(sums[0], operand[k], QTile::down_columns(tile, k), true);
        wgmma_commit();
    };
    // Every lane for itself, for each has read the statistics: no product of it is under way any more.
    const auto release = [&](int slot) {
        if (slot >= 0) shared.empty(slot).arrive();
    };
    // Notes are read by the lane alone that says when they may change.
    const auto read_note = [&](unsigned address) {
        return warp_uniform(thread_place() % 32 == 0 ? load_shared(address) : 0);
    };

    const unsigned char* my_statistics = smem + STATISTICS + thread_place() % 4 * sizeof(float4);
    Place place;
    unsigned keys_parity = 0;
    while (true) {
        shared.keys_full().wait(keys_parity);
        keys_parity ^= 1;
        const int tile = read_note(shared.tile());
        if (tile < 0) break;
        int flags = read_note(shared.tile() + 4);
        Sums dk, dv;
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) dk[0][n][i] = dv[0][n][i] = 0.0f;
        if (flags & LAST) shared.keys_empty().arrive();
        Operand of_gradients;
        int before = -1;  // the slot of the step before
        // By a vote, so that the compiler sees a warp leave the loop as one: what it counts can live in uniform registers.
#pragma unroll 1
        while (!__any_sync(0xffffffffu, flags & LAST)) {
            shared.full(place.slot).wait(place.parity);
            flags = load_shared(shared.note(place.slot) + 8);
            if (load_shared(shared.note(place.slot) + 12))
                clear_empty_rows(smem + 2 * Tile::BYTES + place.slot * SLOT_BYTES,
                                 reinterpret_cast<const float*>(smem + STATISTICS + place.slot * STATISTICS_BYTES + LSE));
#pragma unroll
            for (int part = 0; part < PARTS; ++part) {
                // Through ordinary registers each product would wait for its descriptor.
                const unsigned k_tile = warp_uniform(shared.k_tile()), v_tile = k_tile + Tile::BYTES;
                const unsigned q_tile = warp_uniform(shared.q_tile(place.slot) + part * PART_Q * 128);
                const unsigned d_out_tile = q_tile + QTile::BYTES;
                Products weights, gradients;
                // The scores queue up behind the sums of the part before.
                begin_products(weights, k_tile, q_tile);
                wgmma_commit();
                wgmma_wait<1>();
                hold(dv[0]);
                hold(dk[0]);
                hold(of_gradients);
                if (part == 0) release(before);

                constexpr bool HAS_MODS = HAS_SCORE_MOD || HAS_MASK_MOD || TAIL == TAIL_ROW;
                const int head = HAS_MODS ? read_note(shared.note(place.slot)) : 0;
                const int first_query = HAS_MODS ? read_note(shared.note(place.slot) + 4) + part * PART_Q : 0;
                const Work work(p, HAS_MODS ? tile : 0);
<% if constant.TAIL == constant.TAIL_ROW %>                // Logarithms of the weights of this thread's two means, for this query block.
                float of_means[2];
                {
                    const float* of_block = weights_of_means(p, first_query / BLOCK_Q, head, work.batch) + work.first_key % p.keys;
#pragma unroll
                    for (int half = 0; half < 2; ++half)
                        of_means[half] = __ldg(of_block + thread_place() / 32 * 16 + thread_place() % 32 / 4 + half * 8) * LOG2_E;
                }
<% endif %>                [[maybe_unused]] Products scores = {};  // before the score function, where there is one
                // lse or delta of this thread's columns: two of each of two neighbouring pieces.
                const auto columns_of = [&](unsigned member, int n) {
                    const unsigned char* of_slot = my_statistics + place.slot * STATISTICS_BYTES + member;
                    return reinterpret_cast<const float4*>(of_slot)[part * (PART_Q / 4) + n * 4];
                };
                [[maybe_unused]] float4 early[PART_Q / 16];
                const auto read_early = [&](unsigned member) {
                    if constexpr (READ_EARLY) {
#pragma unroll
                        for (int n = 0; n < PART_Q / 16; ++n) early[n] = columns_of(member, n);
                    }
                };
                const auto of_piece = [&](unsigned member, int n) {
                    const float4 both = READ_EARLY ? early[n / 2] : columns_of(member, n / 2);
                    return n % 2 ? make_float2(both.z, both.w) : make_float2(both.x, both.y);
                };
                // Makes a gradient of d_out · v - delta.
                const auto finish = [&](float& gradient, float weight, int n, int i) {
                    gradient *= weight;
                    if constexpr (HAS_SCORE_MOD) {
                        const int key = thread_place() / 32 * 16 + thread_place() % 32 / 4 + i / 2 * 8;
                        const int query = n * 8 + thread_place() % 4 * 2 + i % 2;
                        gradient *= f.score_mod.gradient(scores[n][i], work.batch, head, first_query + query, work.first_key + key);
                    }
                    // What has no weight has no gradient, be its d_out · v or its derivative what it may.
                    if (HAS_SCORE_MOD || HAS_MASK_MOD) gradient = weight == 0.0f ? 0.0f : gradient;
                };
                read_early(LSE);
                wgmma_wait<0>();
                hold(weights);
                if constexpr (HAS_SCORE_MOD) {
                    each_product(weights, [&](float& weight, int n, int i, int key, int query) {
                        scores[n][i] = weight * p.scale;
                        weight = f.score_mod(scores[n][i], work.batch, head, first_query + query, work.first_key + key);
                    });
                }
                // Scores become exponents of two, and only then -inf: it would not survive a scale of 0 or less.
#pragma unroll
                for (int n = 0; n < PART_Q / 8; ++n) {
                    const float2 lse = of_piece(LSE, n);
#pragma unroll
                    for (int i = 0; i < 4; ++i) weights[n][i] = fmaf(weights[n][i], to_exponent, i % 2 ? -lse.y : -lse.x);
                }
<% if constant.TAIL == constant.TAIL_ROW %>                // Who has no weight takes no part, whatever the score is.
                each_product(weights, [&](float& weight, int, int i, int, int) {
                    weight = of_means[i / 2] == -infinity() ? -infinity() : weight + of_means[i / 2];
                });
<% endif %>                if (HAS_MASK_MOD && (flags & DECIDED)) {
                    each_product(weights, [&](float& weight, int, int, int key, int query) {
                        if (!f.mask_mod(work.batch, head, first_query + query, work.first_key + key)) weight = -infinity();
                    });
                }
                each_product(weights, [](float& weight, int, int, int, int) { weight = exp2_approx(weight); });
                Operand of_weights;
                pack(of_weights, weights);
                // Late: beside the scores the gradients would take registers, and the other block keeps the tensor cores busy.
                begin_products(gradients, v_tile, d_out_tile);
                if constexpr (DELTA_BY_PRODUCT) {
                    const unsigned rows = warp_uniform(shared.statistics(place.slot)) + DELTA + part * PART_Q * Subtrahend::ROW_BYTES;
                    Wgmma<T, PART_Q>::multiply(gradients, Subtrahend::first(warp_uniform(shared.subtrahend())), Subtrahend::second(rows),
                                               true);
                }
                wgmma_commit();
                start_sums(dv, of_weights, d_out_tile);
                if constexpr (!DELTA_BY_PRODUCT) read_early(DELTA);
                wgmma_wait<1>();
                hold(gradients);
                // The next tile's keys and values can come.
                if ((flags & LAST) && part == PARTS - 1) shared.keys_empty().arrive();
                if constexpr (!DELTA_BY_PRODUCT) {
#pragma unroll
                    for (int n = 0; n < PART_Q / 8; ++n) {
                        const float2 delta = of_piece(DELTA, n);
#pragma unroll
                        for (int i = 0; i < 4; ++i) gradients[n][i] -= i % 2 ? delta.y : delta.x;
                    }
                }
                // The weights are taken as the product takes them, rounded: there are no registers for both.
                if constexpr (IN_PAIRS) {
                    pack(of_gradients, gradients);
#pragma unroll
                    for (int k = 0; k < PART_Q / 16; ++k)
#pragma unroll
                        for (int i = 0; i < 4; ++i) of_gradients[k][i] = Mma<T>::multiply(of_weights[k][i], of_gradients[k][i]);
                } else {
#pragma unroll
                    for (int n = 0; n < PART_Q / 8; ++n)
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            const float2 weight = Mma<T>::unpack(of_weights[n / 2][n % 2 * 2 + half]);
                            finish(gradients[n][2 * half], weight.x, n, 2 * half);
                            finish(gradients[n][2 * half + 1], weight.y, n, 2 * half + 1);
                        }
                    pack(of_gradients, gradients);
                }
                start_sums(dk, of_gradients, q_tile);
                // Registers are scarce: the weights go before the next scores come.
                wgmma_wait<1>();
                hold(dv[0]);
                hold(of_weights);
            }
            before = place.slot;
            place.advance();
        }
        wgmma_wait<0>();
        hold(dv[0]);
        hold(dk[0]);
        hold(of_gradients);
        release(before);

        const Work work(p, tile);
        const int first_row = work.first_key + thread_place() / 32 * 16, rows = p.seq_kv - first_row;
        const auto begin = [&](T* tensor, const long long* stride) {
            return tensor + work.batch * stride[0] + work.kv_head * stride[1] + first_row * stride[2];
        };
        float by = p.scale;
        if constexpr (TAIL == TAIL_BLOCK) {
            const int block = work.first_key / BLOCK_KV;
            const auto mean_of = [&](const float* mean, const long long* stride) {
                return mean + work.batch * stride[0] + work.kv_head * stride[1] + block * stride[2];
            };
            if (p.dk_mean != nullptr && p.dv_mean != nullptr && rows > 0) {
                add_mean(dk, by, mean_of(p.dk_mean, p.dk_mean_stride), p.head_dim);
                add_mean(dv, 1.0f, mean_of(p.dv_mean, p.dv_mean_stride), p.value_dim);
                by = 1.0f;
            }
        }
        write_sums(dk, begin(p.dk, p.dk_stride), p.dk_stride[2], rows, p.head_dim, [&](int, int) { return by; });
        write_sums(dv, begin(p.dv, p.dv_stride), p.dv_stride[2], rows, p.value_dim, [](int, int) { return 1.0f; });
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
TILEWRIGHT_KERNEL(const __grid_constant__ Params p, const __grid_constant__ Functions f,
                  const __grid_constant__ TensorMaps maps, const TileQueue queue) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const Shared shared{shared_address(smem)};
    if (threadIdx.x == 0) {
#pragma unroll
        for (int slot = 0; slot < STAGES; ++slot) {
            shared.full(slot).init(33);  // every lane of the warp that brings the statistics, and the copies
            shared.empty(slot).init(128);
        }
        shared.keys_full().init(1);
#pragma unroll
        for (int slot = 0; slot < MAILS; ++slot) {
            shared.mail_full(slot).init(1);
            shared.mail_empty(slot).init(1);
        }
        shared.keys_empty().init(128);
        if constexpr (DELTA_BY_PRODUCT) {
            Subtrahend::store_first(shared.subtrahend());
            publish_shared();
        }
        publish_barriers();
    }
    __syncthreads();
    if (warp_uniform(threadIdx.x / 128) == 1) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPY_REGISTERS));
        const int warp = warp_uniform(threadIdx.x / 32);
        if (warp == 4) copy_tiles(p, maps, queue, shared);
        else if (warp == 5) bring_statistics(p, shared);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COMPUTE_REGISTERS));
        compute_tiles(p, f, shared, smem);
    }
}
