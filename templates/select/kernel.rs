kernel! {
    /// Picks each row's key blocks: in descending order of probability (ties: lower index first) the shortest
    /// prefix with at least `top_k · n` of the row's n admissible blocks and at least `top_p` of its mass; at
    /// least one block. A `top_k` or `top_p` of 0 means "not given"; a `top_p` of 1 keeps every admissible block.
    ///
    /// With `classes`, EMPTY blocks (0) are not admissible. With the full lists too, kept FULL blocks (2) go
    /// there and PARTIAL ones (1) to `kv_indices`; without them everything kept goes to `kv_indices`. Lists are
    /// ascending and filled up with 0. Bit j of word i of `keep` says whether block 32 i + j is in `kv_indices`,
    /// of `full_keep` whether it is in `full_kv_indices`.
    ///
    /// For rows longer than `rank` takes, and for those that nothing ranks. `logits` is the kernel's to overwrite.
    ///
    /// `row_order` becomes the query blocks of each head by falling number of key blocks, equal ones in any order, for the
    /// forward; for it `finished` must be 0, and is 0 again afterwards.
    fn select(
        #[tolerance(any)] logits: inout Tensor<f32, [batch, heads, q_blocks, kv_blocks]>,
        classes: Option<Tensor<u8, [batch | 1, heads | 1, q_blocks, kv_blocks]>>,
        #[tolerance(share = 0.01)] kv_counts: out Tensor<i32, [batch, heads, q_blocks]>,
        #[tolerance(share = 0.01)] kv_indices: out Tensor<i32, [batch, heads, q_blocks, kv_blocks]>,
        #[tolerance(share = 0.01)] full_kv_counts: out Option<Tensor<i32, [batch, heads, q_blocks]>>,
        #[tolerance(share = 0.01)] full_kv_indices: out Option<Tensor<i32, [batch, heads, q_blocks, kv_blocks]>>,
        #[tolerance(share = 0.01)] keep: out Tensor<i32, [batch, heads, q_blocks, words]>,
        #[tolerance(share = 0.01)] full_keep: out Option<Tensor<i32, [batch, heads, q_blocks, words]>>,
        #[tolerance(any)] row_order: out Option<Tensor<i32, [batch, heads, q_blocks]>>,
        finished: counters Option<Tensor<i32, [batch, heads]>>,
        top_k: f32,
        top_p: f32,
    )
    let words = ceil_div(kv_blocks, 32);
    body sm80 {
        tune { WARPS: [4, 8, 2] }
        where {
            // Each warp's scratch, or the bins of the rows' order.
            smem_bytes = max(128 * WARPS, 4224),
            registers = 64,
        }
        launch { grid = [ceil_div(q_blocks, WARPS), heads, batch], threads = 32 * WARPS }
    }
}
