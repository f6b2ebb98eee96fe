kernel! {
    /// Block-sparse attention, forward: online softmax over the key blocks that each query block lists.
    ///
    /// `kv_indices` lists blocks whose elements `mask_mod` still decides, `full_kv_indices` blocks it keeps whole.
    fn forward(
        q: Tensor<T, [batch, heads, seq_q, head_dim]>,
        k: Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        v: Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        kv_counts: Tensor<i32, [batch | 1, heads | 1, q_blocks]>,
        kv_indices: Tensor<i32, [batch | 1, heads | 1, q_blocks, max_blocks]>,
        full_kv_counts: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks]>>,
        full_kv_indices: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks, max_full_blocks]>>,
        out: mut Tensor<T, [batch, heads, seq_q, head_dim]>,
        lse: mut Tensor<f32, [batch, heads, seq_q]>,
        scale: f32,
    )
    functions { score_mod, mask_mod }
    specialize { T: [f16, bf16], D: [64, 96, 128, 256], BLOCK_Q: [128, 64], BLOCK_KV: [64, 128] }

    body sm80 {
        tune { WARPS: [2, 4, 8], STAGES: [1, 2], STEP_KV: [32, 64, 128] }
        where {
            // A warp keeps its rows of the output in registers: 32 rows, or 16 of the widest heads.
            BLOCK_Q == WARPS * (if D > 128 { 16 } else { 32 }),
            BLOCK_KV % STEP_KV == 0,
            // Output and scores, 255 registers a thread less what addresses and operands need.
            BLOCK_Q * (D + STEP_KV) / (32 * WARPS) <= 192,
            // A second stage's copies cost addresses; elsewhere they would spill.
            STAGES == 1 || D == 64 || (D == 96 && BLOCK_Q == 128) || (D != 96 && STEP_KV == 32 && BLOCK_Q == 128),
            smem_bytes = 2 * D * (BLOCK_Q + 2 * STAGES * STEP_KV), // dynamic; 24 * WARPS bytes of static shared memory come on top
        }
        launch { grid = [q_blocks, heads, batch], threads = 32 * WARPS }
    }
}
