// The entries of a row tail: means of runs of key blocks, and behind them means of blocks. SECTION: what the runs' are
// filled up to a multiple of.
#pragma once

/// Which blocks an entry is the mean of: `count` of them from `first` on; none, where it is there to fill up.
struct TailEntry {
    int first, count;
    bool is_run;

    __device__ __forceinline__ TailEntry(int entry, int blocks, int run) : first(0), count(0), is_run(true) {
        // Without a sign, so that the last section may end past what an int holds.
        const unsigned runs = (static_cast<unsigned>(blocks) + run - 1) / run;
        const unsigned section = (runs + SECTION - 1) / SECTION * SECTION, place = entry;
        if (place < runs) {
            first = entry * run;
            count = min(run, blocks - first);
        } else if (place >= section) {
            is_run = false;
            first = static_cast<int>(place - section);
            count = first < blocks ? 1 : 0;
        }
    }
};

/// Keys of a block, all but the last of which have `block_kv` of the `seq_kv`.
__device__ __forceinline__ int keys_of(int block, int block_kv, int seq_kv) {
    return min(block_kv, seq_kv - block * block_kv);
}
