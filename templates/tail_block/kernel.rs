kernel! {
    /// The block tail: what the mean query of a query block makes of the means of the key blocks that it drops.
    ///
    /// For query block i and a dropped key block j of c_j keys, `t_ij = scale q_mean_i · k_mean_j + ln c_j`. `tail_lse`
    /// becomes `ln Σ_j exp(t_ij)` and `tail_out` `Σ_j exp(t_ij - tail_lse_i) v_mean_j`; -inf and 0 where nothing is
    /// dropped. Means of blocks that a query block does not drop may hold anything; an infinite mean of those it drops
    /// gives NaN or what f32 arithmetic gives. Bit j % 32 of word j / 32 of a row of `dropped` is that of block j, and
    /// bits past `kv_blocks` say nothing. `block_kv` keys are a block's, the last one's are what is left of `seq_kv`.
    fn tail_block(
        #[align(16)] q_mean: Tensor<f32, [batch, heads, q_blocks, head_dim]>,
        #[align(16)] k_mean: Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>,
        #[align(16)] v_mean: Tensor<f32, [batch, kv_heads, kv_blocks, value_dim]>,
        dropped: Tensor<i32, [batch | 1, heads | 1, q_blocks, words]>,
        #[align(16)] #[tolerance(1e-3)] tail_out: out Tensor<f32, [batch, heads, q_blocks, value_dim]>,
        #[tolerance(1e-4)] tail_lse: out Tensor<f32, [batch, heads, q_blocks]>,
        scale: f32,
        seq_kv: i32,
        block_kv: i32,
    )
    include "lib/head_dim.rs";
    specialize { D_V: HEAD_DIMS = D }
    let words = ceil_div(kv_blocks, 32);
    require D_V == D || D_V == 128 && (D == 192 || D == 256),
        "narrower values have a tile of their own for 192 or 256 and 128 alone";
    require value_dim <= D_V, "build for larger values";
    require value_dim % 8 == 0, "rows are read 8 elements at a time: pad the values to a multiple of 8";
    require heads % kv_heads == 0, "each key head serves the same number of query heads";
    include "lib/tail_tiles.rs";
    body sm80 {
        // Query blocks of a thread block. Key blocks pass by 16 for each warp that has the same 16 query blocks.
        tune { ROWS: [32, 64, 16], WARPS: [8, 4, 2] }
        where {
            256 * WARPS / ROWS == 32 || 256 * WARPS / ROWS == 64,
            // The query means and those that pass by, split, or the warps' results with the maximum and the sum of each row.
            smem_bytes = max(4 * ROWS * D + 1024 * WARPS / ROWS * (D + D_V), 64 * WARPS * (PITCH + 2)),
            registers = 255,
        }
        launch { grid = [ceil_div(q_blocks, ROWS), heads, batch], threads = 32 * WARPS }
    }
}
