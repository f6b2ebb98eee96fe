kernel! {
    /// The logit of every pair of blocks: the product of the two means times `scale`, nearly as exact as in f32 throughout.
    /// A NaN becomes -inf and the rest is clamped to ±3e38.
    fn score(
        #[align(16)] q_mean: Tensor<f32, [batch, heads, q_blocks, head_dim]>,
        #[align(16)] k_mean: Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>,
        #[tolerance(1e-5)] logits: out Tensor<f32, [batch, heads, q_blocks, kv_blocks]>,
        scale: f32,
    )
    require heads % kv_heads == 0, "each key head serves the same number of query heads";
    require head_dim % 4 == 0, "means are read 16 bytes at a time: pad the head dimension to a multiple of 4";
    body sm80 {
        tune { TILE_Q: [128, 64], TILE_KV: [64, 128] }
        where { smem_bytes = 256 * (TILE_Q + TILE_KV) + 256, registers = 128 }
        launch {
            grid = [ceil_div(q_blocks, TILE_Q) * ceil_div(kv_blocks, TILE_KV), heads, batch],
            threads = TILE_Q * TILE_KV / 32,
        }
    }
}
