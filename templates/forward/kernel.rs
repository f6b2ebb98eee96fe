kernel! {
    /// Block-sparse attention, forward: `softmax(score_mod(q kᵀ · scale)) v` over the kept blocks, with the logarithm of
    /// the sum of exponentials of every row.
    ///
    /// `kv_indices` lists, for every query block, the key blocks to which `mask_mod` is applied element by element;
    /// `full_kv_indices` those it keeps as a whole. Blocks outside the sequence are skipped, in any order they may come.
    fn forward(
        #[align(16)] q: Tensor<T, [batch, heads, seq_q, head_dim]>,
        #[align(16)] k: Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        #[align(16)] v: Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        kv_counts: Tensor<i32, [batch | 1, heads | 1, q_blocks]>,
        kv_indices: Tensor<i32, [batch | 1, heads | 1, q_blocks, max_blocks]>,
        full_kv_counts: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks]>>,
        full_kv_indices: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks, max_full_blocks]>>,
        #[align(16)] out: mut Tensor<T, [batch, heads, seq_q, head_dim]>,
        lse: mut Tensor<f32, [batch, heads, seq_q]>,
        scale: f32,
    )
    specialize { T: [f16, bf16], D: [64, 96, 128, 256], BLOCK_Q: [64, 128], BLOCK_KV: [64, 128] }
    ship { T: [bf16, f16], D: [64, 128], BLOCK_Q: [128], BLOCK_KV: [64] }
    functions { score_mod: ScoreMod, mask_mod: MaskMod }
    let q_blocks = ceil_div(seq_q, BLOCK_Q);
    let kv_blocks = ceil_div(seq_kv, BLOCK_KV);
    require head_dim <= D, "build for a larger head dimension";
    require head_dim % 8 == 0, "rows are read 16 bytes at a time: pad the head dimension to a multiple of 8";
    require heads % kv_heads == 0, "each key head serves the same number of query heads";

    body sm80 {
        tune { WARPS: [4, 8], STAGES: [1, 2], STEP_KV: [64, 32], Q_REGISTER_LIMIT: [0], MIN_BLOCKS: [1] }
        where {
            BLOCK_Q % (16 * WARPS) == 0,
            BLOCK_KV % STEP_KV == 0,
            smem_bytes = 2 * D * (BLOCK_Q + 2 * STAGES * STEP_KV),
            registers = BLOCK_Q * (D + STEP_KV) / (32 * WARPS) + 48,
        }
        launch { grid = [q_blocks, heads, batch], threads = 32 * WARPS }
    }
}
