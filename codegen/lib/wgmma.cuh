// Products of a warpgroup on the tensor cores (wgmma, sm_90a) of f16 or bf16 with f32 accumulation, and the tiles they read.
//
// Four warps hold a 64 x N accumulator: warp w rows 16 w to 16 w + 15, and within them as mma.cuh says of 16 x 8 pieces.
// The body names the widths it needs: `set wgmma_widths = [N, …]` before the include.
#pragma once

/// A ROWS x COLS tile of 2-byte elements as the copy engine writes it with a 128-byte swizzle: panels of 64 columns side by
/// side, each ROWS rows of 128 bytes in which 16-byte chunks are XORed with row % 8. It starts at a multiple of 1024 bytes.
///
/// Descriptors are those of the PTX ISA, "matrix descriptor": address, leading and stride offset in units of 16 bytes.
template <int ROWS, int COLS>
struct SwizzledTile {
    static_assert(ROWS % 8 == 0, "the swizzle repeats every 8 rows");
    static constexpr int PANEL_COLS = 64;
    static constexpr int PANELS = (COLS + PANEL_COLS - 1) / PANEL_COLS;
    static constexpr unsigned PANEL_BYTES = ROWS * 128;
    static constexpr unsigned BYTES = PANELS * PANEL_BYTES;

    /// Columns 16 k to 16 k + 15 of all rows, an operand whose reduction runs along a row.
    static __device__ __forceinline__ unsigned long long along_rows(unsigned tile, int k) {
        return descriptor(tile, k / 4 * PANEL_BYTES + k % 4 * 32, 16);
    }
    /// Rows 16 k to 16 k + 15 of all columns, an operand whose reduction runs down a column.
    static __device__ __forceinline__ unsigned long long down_columns(unsigned tile, int k) {
        return descriptor(tile, k * 16 * 128, PANEL_BYTES);
    }

    /// A warpgroup's registers of the tile's first 64 rows, the first PIECES * 16 columns of them, as the first operand of products: each
    /// warp has 16 rows. After mma.cuh.
    template <int PIECES>
    static __device__ __forceinline__ void hold_rows(unsigned (&held)[PIECES][4], unsigned tile) {
        static_assert(PIECES * 16 <= COLS);
        const int lane = thread_place() % 32, row = thread_place() / 32 % 4 * 16 + lane % 16;
#pragma unroll
        for (int k = 0; k < PIECES; ++k) {
            const int chunk = k % 4 * 2 + lane / 16;
            load_matrices(held[k], tile + k / 4 * PANEL_BYTES + row * 128 + ((chunk ^ row % 8) << 4));
        }
    }

   private:
    /// Only the low word is computed, and of it only the sum for each `offset`: a product must not wait for its operands.
    static __device__ __forceinline__ unsigned long long descriptor(unsigned tile, unsigned offset, unsigned leading) {
        constexpr unsigned SWIZZLE_128 = 1u << 30, EIGHT_ROWS = 1024 >> 4;
        const unsigned low = (tile >> 4) + (leading >> 4 << 16) + (offset >> 4);
        return static_cast<unsigned long long>(SWIZZLE_128 | EIGHT_ROWS) << 32 | low;
    }
};

/// Writes four 8 x 8 matrices of 2-byte elements to shared memory; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices(unsigned address, const unsigned (&from)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(from[0]), "r"(from[1]),
                 "r"(from[2]), "r"(from[3])
                 : "memory");
}

/// Between ordinary writes of registers and products that read or accumulate into them.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// Closes the group of products started since the last commit.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most PENDING groups are under way.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/// Products read or write these registers until a wait: the compiler must not touch them across this.
template <int COUNT>
__device__ __forceinline__ void hold(float (&registers)[COUNT][4]) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(registers[n][i])::"memory");
}
template <int COUNT>
__device__ __forceinline__ void hold(unsigned (&registers)[COUNT][4]) {
#pragma unroll
    for (int n = 0; n < COUNT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(registers[n][i])::"memory");
}

template <typename Element, int N>
struct Wgmma;
<% for n in wgmma_widths | unique %><% for type in ["f16", "bf16"] %>
template <>
struct Wgmma<<% if type == "f16" %>__half<% else %>__nv_bfloat16<% endif %>, $( n )$> {
    /// c = a b, or c += a b where `add`; both operands in shared memory with the reduction along their rows.
    static __device__ __forceinline__ void multiply(float (&c)[$( n // 8 )$][4], unsigned long long a, unsigned long long b,
                                                    bool add) {
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %$( n // 2 + 2 )$, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n$( n )$k16.f32.$( type )$.$( type )$ {<% for i in range(end=n // 2) %>%$( i )$<% if not loop.last %>, <% endif %><% endfor %>}, "
            "%$( n // 2 )$, %$( n // 2 + 1 )$, add, 1, 1, 0, 0;\n}"
            : <% for i in range(end=n // 2) %>"+f"(c[$( i // 4 )$][$( i % 4 )$])<% if not loop.last %>, <% endif %><% endfor %>
            : "l"(a), "l"(b), "r"(static_cast<int>(add)));
    }
    /// The same with a in registers: what `SwizzledTile::hold_rows` reads of a tile.
    static __device__ __forceinline__ void multiply_held(float (&c)[$( n // 8 )$][4], const unsigned (&a)[4],
                                                         unsigned long long b, bool add) {
        from_registers<0>(c, a, b, add);
    }
    /// The same with a in registers (the accumulators of a product, packed) and the reduction down b's columns.
    static __device__ __forceinline__ void multiply_down(float (&c)[$( n // 8 )$][4], const unsigned (&a)[4],
                                                         unsigned long long b, bool add) {
        from_registers<1>(c, a, b, add);
    }

   private:
    /// DOWN: whether the reduction is down b's columns.
    template <int DOWN>
    static __device__ __forceinline__ void from_registers(float (&c)[$( n // 8 )$][4], const unsigned (&a)[4],
                                                          unsigned long long b, bool add) {
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %$( n // 2 + 5 )$, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n$( n )$k16.f32.$( type )$.$( type )$ {<% for i in range(end=n // 2) %>%$( i )$<% if not loop.last %>, <% endif %><% endfor %>}, "
            "{%$( n // 2 )$, %$( n // 2 + 1 )$, %$( n // 2 + 2 )$, %$( n // 2 + 3 )$}, %$( n // 2 + 4 )$, add, 1, 1, %$( n // 2 + 6 )$;\n}"
            : <% for i in range(end=n // 2) %>"+f"(c[$( i // 4 )$][$( i % 4 )$])<% if not loop.last %>, <% endif %><% endfor %>
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(DOWN));
    }
};
<% endfor %><% endfor %>
