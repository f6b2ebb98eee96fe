// Copies from global to shared memory that run behind the arithmetic (cp.async, sm_80 and later).
#pragma once

/// Starts a 16-byte copy past L1, both addresses moved by a constant that goes into the instruction itself. Where
/// `present` is false nothing is read and zeros are written.
template <int TO_OFFSET, int FROM_OFFSET>
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool present) {
    const int bytes = present ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0 + %3], [%1 + %4], 16, %2;" ::"r"(to), "l"(from), "r"(bytes),
                 "n"(TO_OFFSET), "n"(FROM_OFFSET)
                 : "memory");
}

/// Closes the group of copies started since the last commit.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most PENDING of this thread's groups are under way. A barrier must follow before other threads read.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
