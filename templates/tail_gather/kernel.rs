kernel! {
    /// The gradients that a block tail gets from the rows that it was merged into.
    ///
    /// With `alpha_r = exp(tail_lse_i - lse_r)`, the share of the tail of query block i in the whole softmax of its row
    /// r, `g` becomes `Σ_r alpha_r d_out_r` and `tail_delta` `Σ_r alpha_r (out_r · d_out_r - d_lse_r)`. `out` and `lse`
    /// are those of the whole softmax. A row whose `lse` is -inf, or whose alpha is 0, contributes nothing whatever it
    /// holds. Where `tail_lse` is -inf, the block dropped nothing, and both sums are 0.
    fn tail_gather(
        #[align(16)] out: Tensor<T, [batch, heads, seq_q, head_dim]>,
        #[align(16)] d_out: Tensor<T, [batch, heads, seq_q, head_dim]>,
        lse: Tensor<f32, [batch, heads, seq_q]>,
        d_lse: Option<Tensor<f32, [batch, heads, seq_q]>>,
        tail_lse: Tensor<f32, [batch, heads, q_blocks]>,
        #[tolerance(1e-4)] #[align(16)] g: out Tensor<f32, [batch, heads, q_blocks, head_dim]>,
        #[tolerance(1e-3)] tail_delta: out Tensor<f32, [batch, heads, q_blocks]>,
    )
    specialize { T: [f16, bf16] }
    ship { T: [bf16, f16] }
    // `head_dim` is that of the values.
    include "lib/head_dim.rs";
    // Of the sparse blocks, BLOCK_KV changes nothing here: a request has both, as one of `pool`.
    include "lib/block_size.rs";
    let q_blocks = ceil_div(seq_q, BLOCK_Q);
    body sm80 {
        tune { WARPS: [4, 8, 2] }
        // The sums of every group of rows, with what it adds to `tail_delta`.
        where { 32 * WARPS >= D / 8, smem_bytes = 32 * WARPS / (D / 8) * D * 4 + 32 * WARPS * 4, registers = 80 }
        launch { grid = [q_blocks, heads, batch], threads = 32 * WARPS }
    }
}
