kernel! {
    /// Picks each row's key blocks: in descending order of probability (ties: lower index first) the shortest
    /// prefix with at least `top_k · n` of the row's n admissible blocks and at least `top_p` of its mass; at
    /// least one block. A `top_k` or `top_p` of 0 means "not given"; a `top_p` of 1 keeps every admissible block.
    ///
    /// With `classes`, EMPTY blocks (0) are not admissible. With the full lists too, kept FULL blocks (2) go
    /// there and PARTIAL ones (1) to `kv_indices`; without them everything kept goes to `kv_indices`. Lists are
    /// ascending and filled up with 0. In `keep` 0 is dropped, 1 is listed in `kv_indices`, 2 in
    /// `full_kv_indices`.
    /// `logits` is the kernel's to overwrite.
    fn select(
        logits: mut Tensor<f32, [batch, heads, q_blocks, kv_blocks]>,
        classes: Option<Tensor<u8, [batch | 1, heads | 1, q_blocks, kv_blocks]>>,
        kv_counts: mut Tensor<i32, [batch, heads, q_blocks]>,
        kv_indices: mut Tensor<i32, [batch, heads, q_blocks, kv_blocks]>,
        full_kv_counts: mut Option<Tensor<i32, [batch, heads, q_blocks]>>,
        full_kv_indices: mut Option<Tensor<i32, [batch, heads, q_blocks, kv_blocks]>>,
        keep: mut Tensor<u8, [batch, heads, q_blocks, kv_blocks]>,
        top_k: f32,
        top_p: f32,
    )
    body sm80 {
        tune { WARPS: [4, 8, 2] }
        where { smem_bytes = 16 * WARPS, registers = 64 }
        launch { grid = [q_blocks, heads, batch], threads = 32 * WARPS }
    }
}
