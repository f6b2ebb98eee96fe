// Barriers in shared memory that also count bytes (mbarrier, sm_90), and barriers among some of a block's warps.
#pragma once

/// An mbarrier: 8 bytes of shared memory at `address`. It turns to its next phase when every arrival it was made for has
/// come and every byte it was told to expect has landed.
struct Barrier {
    static constexpr unsigned BYTES = 8;
    unsigned address;

    __device__ __forceinline__ void init(int arrivals) const {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
    }
    __device__ __forceinline__ void arrive() const {
        asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
    }
    /// Arrives, and makes the phase wait for `bytes` more bytes of copies.
    __device__ __forceinline__ void arrive_expecting(unsigned bytes) const {
        asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes)
                     : "memory");
    }
    /// Waits for the end of the phase of this parity: 0 for the first, then 1, 0, …
    __device__ __forceinline__ void wait(unsigned parity) const {
        while (!passed(parity)) {}
    }

   private:
    __device__ __forceinline__ bool passed(unsigned parity) const {
        unsigned done;
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%1], %2;\n"
            "selp.b32 %0, 1, 0, done;\n"
            "}"
            : "=r"(done)
            : "r"(address), "r"(parity)
            : "memory");
        return done;
    }
};

/// Makes fresh barriers known to the copy engine.
__device__ __forceinline__ void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

/// A barrier among `threads` threads of the block, of which some wait and some only arrive; 0 is __syncthreads'.
struct NamedBarrier {
    int number;
    int threads;

    __device__ __forceinline__ void wait() const {
        asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
    }
    __device__ __forceinline__ void arrive() const {
        asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
    }
};

/// A place in a ring of SLOTS barriers with the parity of its phase.
template <int SLOTS>
struct RingPlace {
    int slot = 0;
    unsigned parity = 0;

    __device__ __forceinline__ void advance() {
        if (++slot == SLOTS) {
            slot = 0;
            parity ^= 1;
        }
    }
};
