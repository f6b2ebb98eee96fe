// Selection of one row of key blocks by one warp, without sorting.
//
// The kept set is a prefix of the order by probability, so it is known by its threshold. Exponentials are not negative, so
// their bits order as integers: bisection over bits asks how many blocks reach a candidate, and what mass they have, until
// at most a warp's width of blocks lies between enough and not enough; those are ranked against each other, one a lane.
// Masses are integers: the answer is exact in any order of addition.
#pragma once

<% include "lib/warp.cuh" %>
<% include "lib/math.cuh" %>
<% include "lib/logit.cuh" %>
<% include "lib/block_class.cuh" %>

/// The mass of a probability of 1: masses are probabilities in fixed point.
constexpr float MASS_UNIT = 1073741824.0f;  // 2^30

// A key is an exponential's bits, compared as an integer. A block that is not admissible is below them all, and as a number
// a negative 0: it has no mass. Among the logits a NaN stands for it.
constexpr int ABSENT = 0x80000000;
constexpr int NOT_ADMISSIBLE = 0x7fffffff;

/// The mass of a key where none reaches 2^23, from where on floats are integers: an addition rounds like a conversion, which
/// is slow. `unit` is MASS_UNIT by the sum of the row's exponentials.
struct SmallMass {
    static constexpr float WHOLE = 8388608.0f;
    float unit;

    /// What a mass has too much.
    static __device__ __forceinline__ unsigned excess() { return __float_as_uint(WHOLE); }
    __device__ __forceinline__ unsigned operator()(int key) const {
        return __float_as_uint(__fadd_rn(__fmul_rn(__int_as_float(key), unit), WHOLE));
    }
};

/// The mass of any key.
struct AnyMass {
    float unit;

    static __device__ __forceinline__ unsigned excess() { return 0; }
    __device__ __forceinline__ unsigned operator()(int key) const {
        return __float2uint_rn(__fmul_rn(__int_as_float(key), unit));
    }
};

/// Where a row's results go.
struct RowResult {
    int* counts;
    int* indices;
    int* keep;
    int* full_counts;  // null: full blocks are listed with the partial ones
    int* full_indices;
    int* full_keep;
};

/// What is kept: the blocks with a key of at least `high`, and of those from `low` on below it, the first `taken` in order
/// of their index.
struct Threshold {
    int low, high;
    unsigned between;  // blocks from `low` on, below `high`
    unsigned taken;
    unsigned above;       // blocks from `high` on
    unsigned mass_above;  // and their mass
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

/// A row's words come this many blocks at a time, BATCH a lane.
constexpr int PADDING = 128, BATCH = PADDING / 32;

/// How many words of a row of `blocks` each lane is shown, with those past its end.
__device__ __forceinline__ int words_shown(int blocks) { return (blocks + PADDING - 1) / PADDING * BATCH; }

/// A row of the problem: the logits, sanitised, in shared or device memory. They are worked on in place. Where it is PADDED there is
/// memory up to a multiple of PADDING.
///
/// Rows have functions for a warp, of which a lane has every 32nd word: item i of a lane is word 32 i + lane.
template <bool PADDED>
struct RowInMemory {
    static constexpr bool IS_LONG = true;
    int* words;
    const unsigned char* classes;  // null: every block is admissible
    int blocks;

    /// Marks what is not admissible, and what is past the row's end. Returns how many are admissible.
    __device__ __forceinline__ unsigned prepare(int lane) {
        if constexpr (PADDED) {
            for (int i = blocks / 32 * 32 + lane; i < (blocks + PADDING - 1) / PADDING * PADDING; i += 32)
                if (i >= blocks) words[i] = NOT_ADMISSIBLE;
        }
        if (classes == nullptr) return blocks;
        unsigned admissible = 0;
#pragma unroll 4
        for (int i = lane; i < blocks; i += 32) {
            if (classes[i] == EMPTY) words[i] = NOT_ADMISSIBLE;
            admissible += words[i] != NOT_ADMISSIBLE;
        }
        return __reduce_add_sync(WHOLE_WARP, admissible);
    }

    /// Calls visit(word) for a lane's words in order, a batch read before any is used; what comes past the row's end is
    /// `otherwise`, or what a padded row has there.
    template <typename Visit>
    __device__ __forceinline__ void each(int otherwise, int lane, Visit visit) const {
        for (int first = 0; 32 * first < blocks; first += BATCH) {
            int word[BATCH];
            read(word, first, otherwise, lane);
#pragma unroll
            for (int i = 0; i < BATCH; ++i) visit(word[i]);
        }
    }

    /// Puts change(word) in the place of each word.
    template <typename Change>
    __device__ __forceinline__ void change(int otherwise, int lane, Change change) {
        for (int first = 0; 32 * first < blocks; first += BATCH) {
            int word[BATCH];
            read(word, first, otherwise, lane);
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
                const int changed = change(word[i]);
                if (PADDED || 32 * (first + i) + lane < blocks) words[32 * (first + i) + lane] = changed;
            }
        }
    }

    /// Word `block`, which was changed.
    template <typename Change>
    __device__ __forceinline__ int changed(int block, Change) const {
        return words[block];
    }

    /// Calls visit(first) for the first of each 32 items.
    template <typename Visit>
    __device__ __forceinline__ void each_group(Visit visit) const {
        for (int first = 0; 32 * first < blocks; first += 32) visit(first);
    }

    /// A word of 32 bits a lane: lane i gets those of item `first + i` for which `test` holds.
    template <typename Test>
    __device__ __forceinline__ unsigned bits_where(int first, int lane, Test test) const {
        unsigned own = 0;  // bit i of item `first + i`
        for (int begin = 0; begin < 32 && 32 * (first + begin) < blocks; begin += BATCH) {
            int word[BATCH];
            read(word, first + begin, ABSENT, lane);
#pragma unroll
            for (int i = 0; i < BATCH; ++i) own |= static_cast<unsigned>(test(word[i])) << (begin + i);
        }
        return turned(own, lane);
    }

   private:
    __device__ __forceinline__ void read(int (&word)[BATCH], int first, int otherwise, int lane) const {
#pragma unroll
        for (int i = 0; i < BATCH; ++i)
            word[i] = PADDED || 32 * (first + i) + lane < blocks ? words[32 * (first + i) + lane] : otherwise;
    }
};

/// The same with a row of at most 32 * ITEMS blocks in registers: it is read once, and changed there alone. There is memory up to a
/// multiple of PADDING.
template <int ITEMS>
struct RowInRegisters {
    static constexpr bool IS_LONG = ITEMS > 20;
    const int* words;
    const unsigned char* classes;
    int blocks;
    int held[ITEMS];

    __device__ __forceinline__ unsigned prepare(int lane) {
#pragma unroll
        for (int first = 0; first < ITEMS; first += BATCH) {
            if (32 * first >= blocks) break;
#pragma unroll
            for (int i = first; i < first + BATCH; ++i) held[i] = words[32 * i + lane];
            if (32 * (first + BATCH) <= blocks) continue;
#pragma unroll
            for (int i = first; i < first + BATCH; ++i)
                if (32 * i + lane >= blocks) held[i] = NOT_ADMISSIBLE;
        }
        if (classes == nullptr) return blocks;
        unsigned admissible = 0;
        each_item([&](int i) {
            // The last block's class stands for those past the row's end.
            if (classes[min(32 * i + lane, blocks - 1)] == EMPTY) held[i] = NOT_ADMISSIBLE;
            admissible += held[i] != NOT_ADMISSIBLE;
        });
        return __reduce_add_sync(WHOLE_WARP, admissible);
    }

    template <typename Visit>
    __device__ __forceinline__ void each(int, int, Visit visit) const {
        each_item([&](int i) { visit(held[i]); });
    }

    template <typename Change>
    __device__ __forceinline__ void change(int, int, Change change) {
        each_item([&](int i) { held[i] = change(held[i]); });
    }

    /// What `change` makes of word `block`.
    template <typename Change>
    __device__ __forceinline__ int changed(int block, Change change) const {
        return change(words[block]);
    }

    template <typename Visit>
    __device__ __forceinline__ void each_group(Visit visit) const {
#pragma unroll
        for (int first = 0; first < ITEMS; first += 32)
            if (32 * first < blocks) visit(first);
    }

    template <typename Test>
    __device__ __forceinline__ unsigned bits_where(int first, int lane, Test test) const {
        unsigned own = 0;
        each_item([&](int i) {
            if (i >= first && i < first + 32 && test(held[i])) own |= 1u << (i - first);
        });
        return turned(own, lane);
    }

   private:
    static_assert(ITEMS % BATCH == 0);

    /// Calls visit(i) for the items that exist, whole batches of them.
    template <typename Visit>
    __device__ __forceinline__ void each_item(Visit visit) const {
#pragma unroll
        for (int first = 0; first < ITEMS; first += BATCH) {
            if (32 * first >= blocks) break;
#pragma unroll
            for (int i = 0; i < BATCH; ++i) visit(first + i);
        }
    }
};

/// The kind of row of at most MOST blocks, padded, for threads of REGISTERS registers.
template <int MOST, int REGISTERS, bool FITS = MOST / 32 + 40 <= (REGISTERS < 128 ? REGISTERS : 80)>
struct RowOf {
    using Type = RowInRegisters<MOST / 32>;
};
template <int MOST, int REGISTERS>
struct RowOf<MOST, REGISTERS, false> {
    using Type = RowInMemory<true>;
};

/// Appends the numbers of the blocks whose bits are set to a list of `listed`: lane i's word has those from
/// `first + 32 i` on.
__device__ __forceinline__ void append(int* list, unsigned& listed, unsigned bits, int first, int lane) {
    const unsigned count = __popc(bits);
    unsigned place = listed + sum_before(count, lane);
    listed = __shfl_sync(WHOLE_WARP, place + count, 31);
    if (__any_sync(WHOLE_WARP, count > 8)) {
        // Many neighbours: each word is the whole warp's to write.
#pragma unroll 1
        for (int i = 0; i < 32; ++i) {
            const unsigned word = __shfl_sync(WHOLE_WARP, bits, i), start = __shfl_sync(WHOLE_WARP, place, i);
            if (word >> lane & 1) list[start + lanes_before(word, lane)] = first + 32 * i + lane;
        }
        return;
    }
    for (; bits; bits &= bits - 1) list[place++] = first + 32 * lane + __ffs(bits) - 1;
}

/// A key in the middle of the range.
__device__ __forceinline__ int middle_of(const Threshold& kept) { return kept.low + (kept.high - kept.low) / 2; }

/// Goes on with the half of the range that has the threshold: `count` blocks of mass `mass` reach the middle.
__device__ __forceinline__ void halve(Threshold& kept, int middle, unsigned count, unsigned mass, unsigned wanted,
                                      unsigned target) {
    if (count >= wanted && mass >= target) {
        kept.low = middle;
        kept.between = count - kept.above;
    } else {
        kept.high = middle;
        kept.between -= count - kept.above;
        kept.above = count;
        kept.mass_above = mass;
    }
}

/// The first cut: what the mass of `top_p` is of shows on the way. Returns that mass.
template <typename Row, typename Mass>
__device__ __forceinline__ unsigned cut_first(Threshold& kept, const Row& row, Mass mass_of, unsigned wanted, float top_p,
                                              int lane) {
    const int middle = middle_of(kept);
    unsigned whole = 0, count = 0, mass = 0;
    row.each(ABSENT, lane, [&](int key) {
        const unsigned its_mass = mass_of(key);
        const bool reaches = key >= middle;
        whole += its_mass;
        count += reaches;
        mass += reaches ? its_mass : 0;
    });
    whole = __reduce_add_sync(WHOLE_WARP, whole - words_shown(row.blocks) * Mass::excess());
    mass = __reduce_add_sync(WHOLE_WARP, mass - count * Mass::excess());
    count = __reduce_add_sync(WHOLE_WARP, count);
    const unsigned target = static_cast<unsigned>(ceil(static_cast<double>(top_p) * whole));
    halve(kept, middle, count, mass, wanted, target);
    return target;
}

/// Narrows the range until at most a warp's width of blocks is between its ends, or only equal ones: those from `low` on are
/// enough, those from `high` on are not.
template <typename Row, typename Mass>
__device__ __forceinline__ void narrow(Threshold& kept, const Row& row, Mass mass_of, unsigned wanted, unsigned target,
                                       int lane) {
    while (kept.between > 32 && kept.high - kept.low > 1) {
        const int middle = middle_of(kept);
        unsigned count = 0, mass = 0;
        if (Row::IS_LONG) asm volatile("" : "+f"(mass_of.unit));  // masses are made anew each time, not kept: there are too many
        row.each(ABSENT, lane, [&](int key) {
            const bool reaches = key >= middle;
            count += reaches;
            mass += reaches ? mass_of(key) : 0;
        });
        mass = __reduce_add_sync(WHOLE_WARP, mass - count * Mass::excess());
        count = __reduce_add_sync(WHOLE_WARP, count);
        halve(kept, middle, count, mass, wanted, target);
    }
}

/// Both, where the rule has a mass; else the second alone.
template <typename Row, typename Mass>
__device__ __forceinline__ unsigned search(Threshold& kept, const Row& row, Mass mass_of, unsigned wanted, float top_p,
                                           int lane) {
    const unsigned target = top_p > 0.0f ? cut_first(kept, row, mass_of, wanted, top_p, lane) : 0;
    narrow(kept, row, mass_of, wanted, target, lane);
    return target;
}

/// Of at most 32 keys, one a lane (the first `between` lanes), of blocks in order of their index: the shortest prefix of
/// their order that, with the blocks above them, is enough.
__device__ __forceinline__ void rank_lanes(Threshold& kept, int key, AnyMass mass_of, unsigned wanted, unsigned target,
                                           int lane) {
    const bool exists = lane < kept.between;
    const unsigned own = exists ? mass_of(key) : 0;
    unsigned higher = 0;     // of these keys
    unsigned mass_to = own;  // with this one
#pragma unroll 8
    for (int other = 0; other < kept.between; ++other) {
        const int its_key = __shfl_sync(WHOLE_WARP, key, other);
        const unsigned its_mass = __shfl_sync(WHOLE_WARP, own, other);
        const bool before = its_key > key || (its_key == key && other < lane);
        higher += before;
        mass_to += before ? its_mass : 0;
    }
    const bool enough = kept.above + higher + 1 >= wanted && kept.mass_above + mass_to >= target;
    const unsigned taken = min(kept.between, __popc(__ballot_sync(WHOLE_WARP, exists && !enough)) + 1);
    const unsigned last = __ballot_sync(WHOLE_WARP, exists && higher + 1 == taken);
    kept.low = __shfl_sync(WHOLE_WARP, key, __ffs(last) - 1);
    kept.high = kept.low + 1;
    kept.taken = taken - __popc(__ballot_sync(WHOLE_WARP, exists && key > kept.low));
    kept.between = __popc(__ballot_sync(WHOLE_WARP, exists && key == kept.low));
}

/// Lists the blocks that are kept and sets a bit for each.
template <typename Row>
__device__ __forceinline__ void list_blocks(const Row& row, const RowResult& result, const Threshold& kept, int lane) {
    const bool split = result.full_counts != nullptr && row.classes != nullptr;
    unsigned ties = 0, listed = 0, listed_full = 0;
    row.each_group([&](int first) {
        unsigned keep = row.bits_where(first, lane, [&](int key) { return key >= kept.low; });
        if (kept.taken < kept.between) {
            // The first of the equal ones.
            unsigned tie = row.bits_where(first, lane, [&](int key) { return key >= kept.low && key < kept.high; });
            keep ^= tie;
            const unsigned count = __popc(tie), before = ties + sum_before(count, lane);
            ties = __shfl_sync(WHOLE_WARP, before + count, 31);
            for (unsigned left = before < kept.taken ? kept.taken - before : 0; tie && left; tie &= tie - 1, --left)
                keep |= tie & -tie;
        }
        unsigned full = 0;
        if (split) {
            for (int i = 0; i < 32 && 32 * (first + i) < row.blocks; ++i) {
                const int index = 32 * (first + i) + lane;
                const unsigned lanes = __ballot_sync(WHOLE_WARP, index < row.blocks && row.classes[index] == FULL);
                full = lane == i ? lanes : full;
            }
            full &= keep;
            append(result.full_indices, listed_full, full, 32 * first, lane);
        }
        append(result.indices, listed, keep & ~full, 32 * first, lane);
        if (32 * (first + lane) < row.blocks) {
            result.keep[first + lane] = keep & ~full;
            if (result.full_counts != nullptr) result.full_keep[first + lane] = full;
        }
    });
    for (int i = listed + lane; i < row.blocks; i += 32) result.indices[i] = 0;
    if (lane == 0) *result.counts = listed;
    if (result.full_counts != nullptr) {
        for (int i = listed_full + lane; i < row.blocks; i += 32) result.full_indices[i] = 0;
        if (lane == 0) *result.full_counts = listed_full;
    }
}

/// Selects one row. `scratch`: 32 words of the warp's in shared memory; `result()`: where the results go, made when they are there,
/// for they are many registers. Loops over words have no branches within, so that the
/// latencies of a lane's blocks overlap.
template <typename Row, typename Result>
__device__ __forceinline__ void select_row(Row& row, Result result, float top_k, float top_p, int* scratch) {
    const int lane = threadIdx.x % 32;
    const unsigned n = row.prepare(lane);

    // The largest logit. A maximum passes over NaN.
    float peak = minus_infinity();
    row.each(NOT_ADMISSIBLE, lane, [&](int word) { peak = fmaxf(peak, __int_as_float(word)); });
    peak = warp_max(peak);

    // Exponentials. A row of -inf alone has no mass; its blocks are kept in order of their index.
    const float base = peak == minus_infinity() ? 0.0f : peak;
    float sum = 0.0f;
    unsigned bottom = 0xffffffffu;
    const auto key_of = [base](int word) {
        return word != NOT_ADMISSIBLE ? __float_as_int(exp2_approx((__int_as_float(word) - base) * LOG2_E)) : ABSENT;
    };
    row.change(NOT_ADMISSIBLE, lane, [&](int word) {
        const int key = key_of(word);
        sum += __int_as_float(key);
        bottom = min(bottom, static_cast<unsigned>(key));
        return key;
    });
    sum = warp_sum(sum);
    bottom = __reduce_min_sync(WHOLE_WARP, bottom);

    const float unit = sum > 0.0f ? __fdiv_rn(MASS_UNIT, sum) : 0.0f;
    const SmallMass small{unit};
    const AnyMass any{unit};
    const bool all_small = unit < SmallMass::WHOLE;  // the largest exponential is 1
    const unsigned wanted = blocks_wanted(top_k, top_p, n);
    Threshold kept = {n == 0 ? 0 : static_cast<int>(bottom), __float_as_int(1.0f) + 1, n, n, 0, 0};
    if (wanted < n) {
        const unsigned target = all_small ? search(kept, row, small, wanted, top_p, lane)
                                          : search(kept, row, any, wanted, top_p, lane);
        if (kept.between > 32) {
            // Equal ones.
            const unsigned its_mass = any(kept.low);
            const unsigned missing = target > kept.mass_above ? target - kept.mass_above : 0;
            kept.taken = wanted > kept.above ? wanted - kept.above : 0;
            if (missing > 0)
                kept.taken = max(kept.taken, its_mass == 0 ? kept.between : missing / its_mass + (missing % its_mass != 0));
            kept.taken = min(kept.taken, kept.between);
        } else {
            unsigned found = 0;
            row.each_group([&](int first) {
                const auto between = [&](int key) { return key >= kept.low && key < kept.high; };
                append(scratch, found, row.bits_where(first, lane, between), 32 * first, lane);
            });
            __syncwarp();
            const int key = lane < found ? row.changed(scratch[lane], key_of) : ABSENT;
            __syncwarp();
            rank_lanes(kept, key, any, wanted, target, lane);
        }
    }
    list_blocks(row, result(), kept, lane);
}

/// The row and its results' places that `rank` and `select` have arguments for.
template <typename Arguments>
__device__ __forceinline__ RowResult result_of(const Arguments& p, long long batch, long long head, long long q) {
    const auto at = [&](const long long* stride) { return batch * stride[0] + head * stride[1] + q * stride[2]; };
    // The counts' last dimension is the query block itself and has unit stride.
    const auto count_at = [&](const long long* stride) { return batch * stride[0] + head * stride[1] + q; };
    RowResult result;
    result.counts = p.kv_counts + count_at(p.kv_counts_stride);
    result.indices = p.kv_indices + at(p.kv_indices_stride);
    result.keep = p.keep + at(p.keep_stride);
    result.full_counts = nullptr;
    result.full_indices = nullptr;
    result.full_keep = nullptr;
    if (p.full_kv_counts != nullptr && p.full_kv_indices != nullptr && p.full_keep != nullptr) {
        result.full_counts = p.full_kv_counts + count_at(p.full_kv_counts_stride);
        result.full_indices = p.full_kv_indices + at(p.full_kv_indices_stride);
        result.full_keep = p.full_keep + at(p.full_keep_stride);
    }
    return result;
}
