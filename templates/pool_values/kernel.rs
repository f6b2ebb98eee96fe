kernel! {
    /// Means of runs of BLOCK_KV consecutive values, over the rows that exist: the last run of a head is often short.
    /// As `pool` makes them of keys.
    fn pool_values(
        #[align(16)] v: Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        #[tolerance(1e-5)] v_mean: out Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>,
    )
    specialize { T: [f16, bf16] }
    ship { T: [bf16, f16] }
    include "lib/head_dim.rs";
    // Of the sparse blocks, BLOCK_Q changes nothing here: a request has both, as one of `pool`.
    include "lib/block_size.rs";
    let kv_blocks = ceil_div(seq_kv, BLOCK_KV);
    body sm80 {
        tune { WARPS: [4, 8, 2] }
        where { D % 8 == 0, 32 * WARPS >= D / 8, smem_bytes = 32 * WARPS / (D / 8) * D * 4, registers = 72 }
        launch { grid = [kv_blocks * kv_heads, batch, 1], threads = 32 * WARPS }
    }
}
