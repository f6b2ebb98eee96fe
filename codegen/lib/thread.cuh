// Where a thread is, and what it asks the hardware for by number.
#pragma once

/// threadIdx.x, read anew at each call: what depends on it alone is made where it is needed, not kept in a register.
__device__ __forceinline__ unsigned thread_place() {
    unsigned thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

/// The 32-bit shared-memory address that instructions want.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void store_shared(unsigned address, int value) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ int load_shared(unsigned address) {
    int value;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

/// Lets the compiler see that a value is the same in the whole warp, so that it can live in a uniform register.
__device__ __forceinline__ int warp_uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }
