kernel! {
    /// The bits that `transpose` reads, from lists by query block: bit `block % 32` of word `block / 32` of a row of `keep`
    /// says whether the row's list names the block. The lists may be a caller's: a count past its list is cut, a number that
    /// is no block is skipped. `finished` becomes 0, for `transpose`.
    fn mark(
        kv_counts: Tensor<i32, [batch, heads, q_blocks]>,
        kv_indices: Tensor<i32, [batch, heads, q_blocks, max_blocks]>,
        keep: out Tensor<i32, [batch, heads, q_blocks, words]>,
        finished: out Option<Tensor<i32, [batch, heads]>>,
        kv_blocks: i32,
    )
    body sm80 {
        tune { WARPS: [4, 8] }
        where { smem_bytes = 4 * 512 * WARPS, registers = 32 }
        launch { grid = [ceil_div(q_blocks, WARPS), heads, batch], threads = 32 * WARPS }
    }
}
