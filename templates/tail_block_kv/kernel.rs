kernel! {
    /// The gradients of the key and value means of a block tail.
    ///
    /// With pi_ij and dt_ij of `tail_block_q`, `dk_mean` becomes `scale / c_j Σ_i dt_ij q_mean_i` and `dv_mean`
    /// `1 / c_j Σ_i pi_ij g_i`, over the query blocks i of all heads of the group that drop block j, in a fixed order:
    /// what every key and every value of the block gets, 0 where no query block drops it. Arguments are as in
    /// `tail_block_q`; what a query block brings may hold anything for key blocks that it does not drop. A `g` of which
    /// an element is no number makes the whole row of `dv_mean` of every block that it drops NaN.
    fn tail_block_kv(
        #[align(16)] q_mean: Tensor<f32, [batch, heads, q_blocks, head_dim]>,
        #[align(16)] k_mean: Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>,
        #[align(16)] v_mean: Tensor<f32, [batch, kv_heads, kv_blocks, value_dim]>,
        dropped: Tensor<i32, [batch | 1, heads | 1, q_blocks, words]>,
        tail_lse: Tensor<f32, [batch, heads, q_blocks]>,
        #[align(16)] g: Tensor<f32, [batch, heads, q_blocks, value_dim]>,
        tail_delta: Tensor<f32, [batch, heads, q_blocks]>,
        #[align(16)] #[tolerance(1e-3)] dk_mean: out Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>,
        #[align(16)] #[tolerance(1e-3)] dv_mean: out Tensor<f32, [batch, kv_heads, kv_blocks, value_dim]>,
        scale: f32,
        seq_kv: i32,
        block_kv: i32,
    )
    include "lib/head_dim.rs";
    include "lib/tail_backward.rs";
    include "lib/tail_tiles.rs";
    // Columns of a gradient that a thread block makes where registers do not hold both of them.
    const PART = 128;
    body sm80 {
        // Key blocks of a thread block. Query blocks pass by 16 for each warp that has the same 16 key blocks.
        tune { ROWS: [32, 64, 16], WARPS: [8, 4, 2] }
        where {
            256 * WARPS / ROWS == 32 || 256 * WARPS / ROWS == 64,
            // The split means of keys and values and those that pass by, or the warps' results.
            smem_bytes = max(4 * (ROWS + 256 * WARPS / ROWS) * (D + D_V), 64 * WARPS * PITCH),
            registers = 255,
        }
        launch {
            grid = [ceil_div(kv_blocks, ROWS) * (if D + D_V > 256 { (D + D_V) / PART } else { 1 }), kv_heads, batch],
            threads = 32 * WARPS
        }
    }
}
