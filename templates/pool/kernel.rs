kernel! {
    /// Means of runs of BLOCK_Q consecutive queries and of BLOCK_KV consecutive keys, over the rows that exist: the last
    /// run of a head is often short. `finished` is set to 0 for `rank`. With a FINE that is not 0, `k_fine` becomes the
    /// means of runs of FINE keys, rounded to T, for `score_keys`.
    fn pool(
        #[align(16)] q: Tensor<T, [batch, heads, seq_q, head_dim]>,
        #[align(16)] k: Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        #[tolerance(1e-5)] q_mean: out Tensor<f32, [batch, heads, q_blocks, head_dim]>,
        #[tolerance(1e-5)] k_mean: out Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>,
        finished: out Option<Tensor<i32, [batch, heads]>>,
        #[align(16)] #[tolerance(1e-2)] k_fine: out Option<Tensor<T, [batch, kv_heads, runs, head_dim]>>,
    )
    specialize { T: [f16, bf16] }
    ship { T: [bf16, f16] }
    include "lib/head_dim.rs";
    include "lib/block_size.rs";
    specialize { FINE: [0, 4] = 0 }
    let runs = ceil_div(seq_kv, max(FINE, 1));
    let q_blocks = ceil_div(seq_q, BLOCK_Q);
    let kv_blocks = ceil_div(seq_kv, BLOCK_KV);
    body sm80 {
        tune { WARPS: [4, 8, 2] }
        where { D % 8 == 0, 32 * WARPS >= D / 8, smem_bytes = 32 * WARPS / (D / 8) * D * 4, registers = 72 }
        launch { grid = [q_blocks * heads + kv_blocks * kv_heads, batch, 1], threads = 32 * WARPS }
    }
}
