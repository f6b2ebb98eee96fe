kernel! {
    /// What a mask function makes of each block of queries and keys: 0 nothing is kept, 1 some of it, 2 all of
    /// it; over the elements that exist (q < seq_q, kv < seq_kv). A block without elements is 0.
    fn classify(
        classes: out Tensor<u8, [batch, heads, q_blocks, kv_blocks]>,
        seq_q: i32,
        seq_kv: i32,
    )
    specialize { BLOCK_Q: [64, 128], BLOCK_KV: [64, 128] }
    ship { BLOCK_Q: [128], BLOCK_KV: [64] }
    functions { mask_mod: MaskMod }
    body sm80 {
        tune { WARPS: [4, 8] }
        where { BLOCK_KV % 32 == 0, smem_bytes = 0, registers = 32 }
        launch { grid = [q_blocks * ceil_div(kv_blocks, WARPS), heads, batch], threads = 32 * WARPS }
    }
}
