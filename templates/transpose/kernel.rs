kernel! {
    /// The lists of query blocks by key block, from the bits of `rank` and `select`: those of `keep` go to `q_indices`,
    /// those of `full_keep` to `full_q_indices` where they are given. Lists are ascending and filled up with 0.
    ///
    /// `key_order` becomes the key blocks of each head by falling number of query blocks, equal ones in any order, for the
    /// backward by keys; for it `finished` must be 0, and is 0 again afterwards.
    fn transpose(
        keep: Tensor<i32, [batch, heads, q_blocks, words]>,
        full_keep: Option<Tensor<i32, [batch, heads, q_blocks, words]>>,
        q_counts: out Tensor<i32, [batch, heads, kv_blocks]>,
        q_indices: out Tensor<i32, [batch, heads, kv_blocks, q_blocks]>,
        full_q_counts: out Option<Tensor<i32, [batch, heads, kv_blocks]>>,
        full_q_indices: out Option<Tensor<i32, [batch, heads, kv_blocks, q_blocks]>>,
        #[tolerance(any)] key_order: out Option<Tensor<i32, [batch, heads, kv_blocks]>>,
        finished: counters Option<Tensor<i32, [batch, heads]>>,
    )
    let words = ceil_div(kv_blocks, 32);
    body sm80 {
        tune { WARPS: [16, 8, 4] }
        where { smem_bytes = max(4 * 32 * WARPS, 4 * (1024 + 32)), registers = 40 }
        launch { grid = [words, heads, batch], threads = 32 * WARPS }
    }
}
