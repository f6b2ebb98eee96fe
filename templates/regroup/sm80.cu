// Rows in another order: one thread block writes ROWS consecutive rows of one head.
//
// The block's pieces are numbered row by row and handed out thread by thread, so that neighbours write neighbouring
// bytes whatever the width. A thread's loads are issued in batches before any is used: the kernel does nothing but wait
// for memory.

constexpr int BATCH = 4;  // pieces of a thread in flight

static_assert(THREADS == 32 * WARPS);

/// Whether every piece of 16 bytes of a tensor's rows lies on a multiple of 16 bytes.
__device__ __forceinline__ bool in_words(const T* start, const long long* stride, int width) {
    const unsigned long long bits = reinterpret_cast<unsigned long long>(start) |
                                    static_cast<unsigned long long>(stride[0] | stride[1] | stride[2] | width) * sizeof(T);
    return bits % sizeof(uint4) == 0;
}

/// Copies this block's rows in pieces of type P.
template <class P>
__device__ __forceinline__ void copy_rows(const Params& p) {
    constexpr int ELEMENTS = sizeof(P) / sizeof(T);
    const long long head = blockIdx.y, batch = blockIdx.z;
    const T* from = p.x + batch * p.x_stride[0] + head * p.x_stride[1];
    T* to = p.out + batch * p.out_stride[0] + head * p.out_stride[1];
    const unsigned first = blockIdx.x * ROWS;
    const unsigned pieces = p.width / ELEMENTS;  // of a row
    const unsigned long long all = static_cast<unsigned long long>(min(static_cast<unsigned>(ROWS), p.seq - first)) * pieces;

    // A thread's place moves on by THREADS pieces, split once into rows and pieces: no division in the loop.
    const unsigned row_step = THREADS / pieces, piece_step = THREADS % pieces;
    unsigned row = threadIdx.x / pieces, piece = threadIdx.x % pieces;
    for (unsigned long long begin = threadIdx.x; begin < all; begin += THREADS * BATCH) {
        P held[BATCH];
        T* target[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            target[i] = nullptr;
            if (begin + i * THREADS < all) {
                const unsigned source = static_cast<unsigned>(__ldg(p.order + first + row));
                target[i] = to + (first + row) * p.out_stride[2] + static_cast<long long>(piece) * ELEMENTS;
                held[i] = P{};
                if (source < static_cast<unsigned>(p.seq)) {
                    held[i] = __ldg(reinterpret_cast<const P*>(from + source * p.x_stride[2] +
                                                               static_cast<long long>(piece) * ELEMENTS));
                }
            }
            row += row_step;
            piece += piece_step;
            if (piece >= pieces) {
                piece -= pieces;
                ++row;
            }
        }
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
            if (target[i]) *reinterpret_cast<P*>(target[i]) = held[i];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) TILEWRIGHT_KERNEL(const __grid_constant__ Params p) {
    // The same for the whole grid. Without it, rows of any width and alignment go element by element.
    if (in_words(p.x, p.x_stride, p.width) && in_words(p.out, p.out_stride, p.width)) {
        copy_rows<uint4>(p);
    } else if constexpr (sizeof(T) == 4) {
        copy_rows<unsigned>(p);
    } else {
        copy_rows<unsigned short>(p);
    }
}
