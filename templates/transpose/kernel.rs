kernel! {
    /// The lists of query blocks by key block, from the dense keep map of `select`: entries of 1 go to
    /// `q_indices`, entries of 2 to `full_q_indices` where the full lists are given. Lists are ascending and
    /// filled up with 0.
    fn transpose(
        keep: Tensor<u8, [batch | 1, heads | 1, q_blocks, kv_blocks]>,
        q_counts: mut Tensor<i32, [batch, heads, kv_blocks]>,
        q_indices: mut Tensor<i32, [batch, heads, kv_blocks, q_blocks]>,
        full_q_counts: mut Option<Tensor<i32, [batch, heads, kv_blocks]>>,
        full_q_indices: mut Option<Tensor<i32, [batch, heads, kv_blocks, q_blocks]>>,
    )
    body sm80 {
        tune { WARPS: [8, 16, 4] }
        where { smem_bytes = 2 * 4 * 32 * WARPS, registers = 40 }
        launch { grid = [ceil_div(kv_blocks, 32), heads, batch], threads = 32 * WARPS }
    }
}
