kernel! {
    /// The gradient of the query means of a block tail.
    ///
    /// For query block i of n_i queries and a dropped key block j of c_j keys,
    /// `pi_ij = exp(scale q_mean_i · k_mean_j + ln c_j - tail_lse_i)` and
    /// `dt_ij = pi_ij (g_i · v_mean_j - tail_delta_i)`; `dq_mean` becomes `scale / n_i Σ_j dt_ij k_mean_j`, which is what
    /// every query of the block gets. It is 0 where nothing is dropped, which a `tail_lse` of -inf says too. `g` and
    /// `tail_delta` are those of `tail_gather`, the rest is as in `tail_block`: means of blocks that a query block does
    /// not drop may hold anything. `block_q` queries are a block's, the last one's are what is left of `seq_q`;
    /// `block_kv` and `seq_kv` are the same of keys.
    fn tail_block_q(
        #[align(16)] q_mean: Tensor<f32, [batch, heads, q_blocks, head_dim]>,
        #[align(16)] k_mean: Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>,
        #[align(16)] v_mean: Tensor<f32, [batch, kv_heads, kv_blocks, value_dim]>,
        dropped: Tensor<i32, [batch | 1, heads | 1, q_blocks, words]>,
        tail_lse: Tensor<f32, [batch, heads, q_blocks]>,
        #[align(16)] g: Tensor<f32, [batch, heads, q_blocks, value_dim]>,
        tail_delta: Tensor<f32, [batch, heads, q_blocks]>,
        #[align(16)] #[tolerance(1e-3)] dq_mean: out Tensor<f32, [batch, heads, q_blocks, head_dim]>,
        scale: f32,
        seq_q: i32,
        seq_kv: i32,
        block_q: i32,
        block_kv: i32,
    )
    include "lib/head_dim.rs";
    include "lib/tail_backward.rs";
    include "lib/tail_tiles.rs";
    body sm80 {
        // Query blocks of a thread block. Key blocks pass by 16 for each warp that has the same 16 query blocks.
        tune { ROWS: [32, 64, 16], WARPS: [8, 4, 2] }
        where {
            256 * WARPS / ROWS == 32 || 256 * WARPS / ROWS == 64,
            // The split query means and sums of gradients and those that pass by, or the warps' results.
            smem_bytes = max(4 * (ROWS + 256 * WARPS / ROWS) * (D + D_V), 64 * WARPS * PITCH),
            registers = 255,
        }
        launch { grid = [ceil_div(q_blocks, ROWS), heads, batch], threads = 32 * WARPS }
    }
}
