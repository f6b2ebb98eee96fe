kernel! {
    /// The logit of every pair of blocks by the keys: the largest of the products of the query block's mean, times `scale` and rounded
    /// to T, with the means of runs of FINE keys (`k_fine`, of `pool`). Products that are no numbers do not count; where none is one the
    /// logit is -inf. It is 3e38 at most.
    fn score_keys(
        #[align(16)] q_mean: Tensor<f32, [batch, heads, q_blocks, head_dim]>,
        #[align(16)] k_fine: Tensor<T, [batch, kv_heads, runs, head_dim]>,
        #[tolerance(1e-3)] logits: out Tensor<f32, [batch, heads, q_blocks, kv_blocks]>,
        scale: f32,
    )
    specialize { T: [f16, bf16] }
    ship { T: [bf16, f16] }
    include "lib/head_dim.rs";
    include "lib/block_size.rs";
    const FINE = 4;
    let kv_blocks = ceil_div(runs, BLOCK_KV / FINE);
    require heads % kv_heads == 0, "each key head serves the same number of query heads";
    body sm80 {
        // Rows of k_fine are taken TILE_KV at a time, SPAN times.
        tune { TILE_Q: [128, 64], TILE_KV: [64, 128], SPAN: [8, 4, 2], WARPS: [8, 4] }
        where {
            // A warp has 32 query blocks and whole key blocks.
            TILE_KV * TILE_Q / (32 * WARPS) >= BLOCK_KV / FINE,
            // Fewer warps only where the rows are so wide that small tiles alone fit.
            WARPS == 8 || D == 256 && TILE_KV * TILE_Q <= 4096,
            smem_bytes = 2 * D * (TILE_Q + 2 * TILE_KV),
            registers = if TILE_KV * TILE_Q > 8192 { 168 } else { 128 },
        }
        launch { grid = [ceil_div(q_blocks, TILE_Q) * ceil_div(runs, TILE_KV * SPAN), heads, batch], threads = 32 * WARPS }
    }
}
