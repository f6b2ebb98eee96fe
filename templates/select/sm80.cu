// Selection: one thread block picks the key blocks of one row without sorting it.
//
// The kept set is a prefix of the order by probability, so it is known by its threshold. Probabilities are not
// negative, so their bits order as integers and the threshold is found by bisection over bits: each step asks how many
// blocks reach a candidate, and what mass they have. Masses are integers: the answer is exact in any order of addition.
//
// A row of up to 12 blocks a thread stays in registers; a longer one is kept in `logits` and read again at each step.
<% include "lib/reduce.cuh" %>
<% include "lib/logit.cuh" %>
<% include "lib/block_class.cuh" %>

static_assert(THREADS == 32 * WARPS);

/// The mass of a probability of 1: masses are probabilities in fixed point.
constexpr float MASS_UNIT = 1073741824.0f;  // 2^30

// A key is a probability's bits plus 1; 0 is a block that is not admissible.
constexpr unsigned ABSENT = 0;

__device__ __forceinline__ unsigned mass_of(unsigned key) {
    return key == ABSENT ? 0 : __float2uint_rn(__uint_as_float(key - 1) * MASS_UNIT);
}

/// Blocks and their mass in one word: a row's mass never reaches 2^32.
struct Tally {
    unsigned long long word;

    __device__ __forceinline__ Tally(unsigned count, unsigned mass)
        : word(static_cast<unsigned long long>(count) << 32 | mass) {}
    __device__ __forceinline__ explicit Tally(unsigned long long both) : word(both) {}
    __device__ __forceinline__ unsigned count() const { return static_cast<unsigned>(word >> 32); }
    __device__ __forceinline__ unsigned mass() const { return static_cast<unsigned>(word); }
};

/// One row of the problem.
struct RowData {
    unsigned* words;               // logits, exponentials or keys; always accessed as words
    const unsigned char* classes;  // null: every block is admissible
    int blocks;

    __device__ __forceinline__ float value(int index) const { return __uint_as_float(words[index]); }
    __device__ __forceinline__ unsigned char class_of(int index) const {
        if (index >= blocks) return EMPTY;
        return classes == nullptr ? PARTIAL : classes[index];
    }
};

/// Where a row's results go.
struct RowResult {
    int* counts;
    int* indices;
    int* full_counts;  // null: full blocks are listed with the partial ones
    int* full_indices;
    unsigned char* keep;
};

/// The number of blocks the rule asks for whatever their mass. Not contracted to FMAs, so that every machine finds the
/// same number; the 1e-6 lets a product that is an integer but for rounding count as that integer.
__device__ __forceinline__ unsigned blocks_wanted(float top_k, float top_p, unsigned n) {
    if (top_p >= 1.0f) return n;
    unsigned wanted = 1;
    if (top_k > 0.0f) {
        const float product = __fmul_rn(top_k, static_cast<float>(n));
        wanted = max(1u, __float2uint_ru(__fsub_rn(product, __fmul_rn(product, 1e-6f))));
    }
    return min(wanted, n);
}

/// Selects one row. ITEMS is the number of blocks a thread holds in registers, 0 for a row that stays in memory.
///
/// A warp owns a run of neighbouring blocks and its lanes every 32nd of it, so ascending lists need only the number of
/// blocks kept by the warps before.
template <int ITEMS>
__device__ __forceinline__ void select_row(const RowData& row, const RowResult& result, float top_k, float top_p,
                                           WarpTrade<WARPS>& trade) {
    constexpr bool HELD = ITEMS > 0;
    constexpr int SLOTS = HELD ? ITEMS : 1;
    const int items = HELD ? ITEMS : (row.blocks + THREADS - 1) / THREADS;
    const int lane = threadIdx.x % 32;
    const int begin = trade.warp * items * 32 + lane;

    unsigned keys[SLOTS];    // first a logit's bits, then an exponential's, then the key
    unsigned masses[SLOTS];
    unsigned admissible = 0, full = 0;  // a bit for each held block

    // The largest logit and the number of admissible blocks.
    float peak = minus_infinity();
    unsigned n = 0;
#pragma unroll SLOTS
    for (int i = 0; i < items; ++i) {
        const int index = begin + 32 * i;
        const unsigned char block_class = row.class_of(index);
        const float logit = block_class == EMPTY ? minus_infinity() : sanitised(row.value(index));
        peak = fmaxf(peak, logit);
        n += block_class != EMPTY;
        if constexpr (HELD) {
            keys[i] = __float_as_uint(logit);
            admissible |= static_cast<unsigned>(block_class != EMPTY) << i;
            full |= static_cast<unsigned>(block_class == FULL) << i;
        }
    }
    peak = trade.reduce(warp_max(peak), [](float a, float b) { return fmaxf(a, b); });
    n = trade.sum(__reduce_add_sync(WHOLE_WARP, n));

    // Exponentials. A row of -inf alone has no mass; its blocks are kept in order of their index.
    float sum = 0.0f;
#pragma unroll SLOTS
    for (int i = 0; i < items; ++i) {
        const int index = begin + 32 * i;
        if constexpr (HELD) {
            const bool present = admissible >> i & 1;
            const float e = present && peak > minus_infinity() ? expf(__uint_as_float(keys[i]) - peak) : 0.0f;
            keys[i] = __float_as_uint(e);
            sum += e;
        } else if (index < row.blocks) {
            const bool present = row.class_of(index) != EMPTY;
            const float e = present && peak > minus_infinity() ? expf(sanitised(row.value(index)) - peak) : 0.0f;
            // From here on the sign says "not admissible" and the classes need not be read again.
            row.words[index] = __float_as_uint(present ? e : -1.0f);
            sum += e;
        }
    }
    sum = trade.sum(warp_sum(sum));

    // Probabilities as keys and masses.
    unsigned top = ABSENT, mass = 0;
    unsigned bottom = 0xffffffffu;
#pragma unroll SLOTS
    for (int i = 0; i < items; ++i) {
        const int index = begin + 32 * i;
        const bool exists = HELD || index < row.blocks;
        const float e = HELD ? __uint_as_float(keys[HELD ? i : 0]) : exists ? row.value(index) : -1.0f;
        const bool present = HELD ? admissible >> i & 1 : e >= 0.0f;
        const unsigned key = present ? __float_as_uint(sum > 0.0f ? __fdiv_rn(e, sum) : 0.0f) + 1 : ABSENT;
        const unsigned block_mass = mass_of(key);
        if constexpr (HELD) {
            keys[i] = key;
            masses[i] = block_mass;
        } else if (exists) {
            row.words[index] = key;
        }
        top = max(top, key);
        bottom = min(bottom, key - 1);  // wraps around for ABSENT
        mass += block_mass;
    }
    const auto key_at = [&](int i) -> unsigned {
        if constexpr (HELD) return keys[i];
        const int index = begin + 32 * i;
        return index < row.blocks ? row.words[index] : ABSENT;
    };
    mass = trade.sum(__reduce_add_sync(WHOLE_WARP, mass));
    top = trade.reduce(__reduce_max_sync(WHOLE_WARP, top), [](unsigned a, unsigned b) { return max(a, b); });
    bottom = trade.reduce(__reduce_min_sync(WHOLE_WARP, bottom), [](unsigned a, unsigned b) { return min(a, b); });

    const unsigned wanted = blocks_wanted(top_k, top_p, n);
    const unsigned target =
        top_p > 0.0f && top_p < 1.0f ? static_cast<unsigned>(ceil(static_cast<double>(top_p) * mass)) : 0;

    // Blocks with a key of at least `low` are enough, those of at least `high` are not. Done when the two are
    // neighbours, or when a single block lies between them.
    unsigned low = n == 0 ? 1 : bottom + 1, high = top + 1;
    unsigned reaching_low = n;
    Tally above(0, 0);
    while (wanted < n && high - low > 1 && reaching_low - above.count() > 1) {
        const unsigned middle = low + (high - low) / 2;
        unsigned count = 0, reached = 0;
#pragma unroll(HELD ? ITEMS : 4)
        for (int i = 0; i < items; ++i) {
            const unsigned key = key_at(i);
            if (key >= middle) {
                ++count;
                reached += HELD ? masses[HELD ? i : 0] : mass_of(key);
            }
        }
        const Tally of_warp(__reduce_add_sync(WHOLE_WARP, count), __reduce_add_sync(WHOLE_WARP, reached));
        const Tally all(trade.sum(of_warp.word));
        if (all.count() >= wanted && all.mass() >= target) {
            low = middle;
            reaching_low = all.count();
        } else {
            high = middle;
            above = all;
        }
    }

    // Of the blocks between the two, which are equal or one, the first `taken` are kept.
    const unsigned between = reaching_low - above.count();
    unsigned taken = wanted > above.count() ? wanted - above.count() : 0;
    if (wanted < n && target > above.mass()) {
        const unsigned each = mass_of(low);
        const unsigned missing = target - above.mass();
        taken = max(taken, each == 0 ? between : missing / each + (missing % each != 0));
    }
    taken = min(taken, between);

    unsigned ties = 0;  // met before this warp's next block
    if (taken < between) {
#pragma unroll SLOTS
        for (int i = 0; i < items; ++i) {
            const unsigned key = key_at(i);
            ties += key >= low && key < high;
        }
        unsigned all;
        ties = trade.sum_before(__reduce_add_sync(WHOLE_WARP, ties), all);
    }

    // What becomes of each block: 0 dropped, 1 to the main list, 2 to the full list.
    const bool split = result.full_counts != nullptr;
    unsigned listed = 0, listed_full = 0;
#pragma unroll SLOTS
    for (int i = 0; i < items; ++i) {
        const int index = begin + 32 * i;
        const unsigned key = key_at(i);
        const bool tie = key >= low && key < high;
        const unsigned tie_lanes = __ballot_sync(WHOLE_WARP, tie);
        const bool kept = key >= high || (tie && ties + lanes_before(tie_lanes, lane) < taken);
        ties += __popc(tie_lanes);
        bool to_full = false;
        if (kept && split) {
            if constexpr (HELD) to_full = full >> i & 1;
            else to_full = row.class_of(index) == FULL;
        }
        const unsigned fate = kept ? (to_full ? 2 : 1) : 0;
        if constexpr (HELD) {
            keys[i] = fate;
        } else if (index < row.blocks) {
            row.words[index] = fate;
        }
        listed += fate == 1;
        listed_full += fate == 2;
    }
    const Tally of_warp(__reduce_add_sync(WHOLE_WARP, listed), __reduce_add_sync(WHOLE_WARP, listed_full));
    unsigned long long total_word;
    const Tally before(trade.sum_before(of_warp.word, total_word));
    const Tally total(total_word);

    unsigned place = before.count(), full_place = before.mass();
#pragma unroll SLOTS
    for (int i = 0; i < items; ++i) {
        const int index = begin + 32 * i;
        const unsigned fate = key_at(i);
        const unsigned main_lanes = __ballot_sync(WHOLE_WARP, fate == 1);
        const unsigned full_lanes = __ballot_sync(WHOLE_WARP, fate == 2);
        if (fate == 1) result.indices[place + lanes_before(main_lanes, lane)] = index;
        if (fate == 2) result.full_indices[full_place + lanes_before(full_lanes, lane)] = index;
        if (index < row.blocks) result.keep[index] = static_cast<unsigned char>(fate);
        place += __popc(main_lanes);
        full_place += __popc(full_lanes);
    }

    for (int i = total.count() + threadIdx.x; i < row.blocks; i += THREADS) result.indices[i] = 0;
    if (split) {
        for (int i = total.mass() + threadIdx.x; i < row.blocks; i += THREADS) result.full_indices[i] = 0;
    }
    if (threadIdx.x == 0) {
        *result.counts = total.count();
        if (split) *result.full_counts = total.mass();
    }
}

// 64 registers hold the longest row kept in registers.
extern "C" __global__ void __launch_bounds__(THREADS, 1024 / THREADS)
    TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    extern __shared__ __align__(128) unsigned char smem[];
    WarpTrade<WARPS> trade(smem, threadIdx.x / 32);

    const long long q = blockIdx.x, head = blockIdx.y, batch = blockIdx.z;
    const auto at = [&](const long long* stride) { return batch * stride[0] + head * stride[1] + q * stride[2]; };
    const bool split = p.full_kv_counts != nullptr && p.full_kv_indices != nullptr;
    RowData row;
    row.words = reinterpret_cast<unsigned*>(p.logits + at(p.logits_stride));
    row.classes = p.classes == nullptr ? nullptr : p.classes + at(p.classes_stride);
    row.blocks = p.kv_blocks;
    RowResult result;
    // The counts' last dimension is the query block itself and has unit stride.
    result.counts = p.kv_counts + batch * p.kv_counts_stride[0] + head * p.kv_counts_stride[1] + q;
    result.indices = p.kv_indices + at(p.kv_indices_stride);
    result.full_counts = nullptr;
    result.full_indices = nullptr;
    if (split) {
        result.full_counts =
            p.full_kv_counts + batch * p.full_kv_counts_stride[0] + head * p.full_kv_counts_stride[1] + q;
        result.full_indices = p.full_kv_indices + at(p.full_kv_indices_stride);
    }
    result.keep = p.keep + at(p.keep_stride);

    if (row.blocks <= 4 * THREADS) {
        select_row<4>(row, result, p.top_k, p.top_p, trade);
    } else if (row.blocks <= 12 * THREADS) {
        select_row<12>(row, result, p.top_k, p.top_p, trade);
    } else {
        select_row<0>(row, result, p.top_k, p.top_p, trade);
    }
}
