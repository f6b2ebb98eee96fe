// Copies of boxes of a tensor to shared memory by the copy engine (TMA, sm_90).
#pragma once

/// Fetches the description itself, so that the first copy does not wait for it.
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// Starts the copy of the box that begins at (column, row) of one head and batch of a [batch, heads, rows, columns] tensor.
/// Elements past the tensor's ends become zeros. The box's bytes, all of them, count towards `barrier`.
__device__ __forceinline__ void copy_box(unsigned to, const TensorMap& map, int column, int row, int head, int batch,
                                         Barrier barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
            to),
        "l"(&map), "r"(barrier.address), "r"(column), "r"(row), "r"(head), "r"(batch)
        : "memory");
}

/// The same of a whole tile, gathered from pieces of PIECE rows that begin at the rows `first`.
template <typename Tile, int PIECE, int PIECES>
__device__ __forceinline__ void copy_pieces(unsigned tile, const TensorMap& map, const int (&first)[PIECES], int head, int batch,
                                            Barrier barrier) {
#pragma unroll
    for (int i = 0; i < PIECES; ++i)
#pragma unroll
        for (int panel = 0; panel < Tile::PANELS; ++panel)
            copy_box(tile + panel * Tile::PANEL_BYTES + i * PIECE * 128, map, panel * Tile::PANEL_COLS, first[i], head, batch, barrier);
}

/// Starts the copy of bytes that lie side by side; addresses and number are multiples of 16.
__device__ __forceinline__ void copy_bytes(unsigned to, const void* from, int bytes, Barrier barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
                 "r"(bytes), "r"(barrier.address)
                 : "memory");
}

/// Makes this thread's ordinary writes to shared memory visible to the copy engine and to products that read it there.
__device__ __forceinline__ void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Starts the copy of a box from shared memory, where this warp's writes were published, to the tensor; elements past the tensor's
/// ends are left out. Copies started by one thread up to its commit are a group.
__device__ __forceinline__ void store_box(unsigned from, const TensorMap& map, int column, int row, int head, int batch) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
                 "r"(from), "r"(column), "r"(row), "r"(head), "r"(batch)
                 : "memory");
}
__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

/// Waits until the shared memory of this thread's stores has been read.
__device__ __forceinline__ void wait_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
