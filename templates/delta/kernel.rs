kernel! {
    /// What the gradients of a row's scores have in common: `rowsum(d_out · out) - d_lse` (Dao et al., FlashAttention, arXiv
    /// 2205.14135, appendix B.2, with the gradient of lse). 0 for a row that attends to nothing, whatever it holds.
    fn delta(
        #[align(16)] out: Tensor<T, [batch, heads, seq_q, value_dim]>,
        #[align(16)] d_out: Tensor<T, [batch, heads, seq_q, value_dim]>,
        lse: Tensor<f32, [batch, heads, seq_q]>,
        d_lse: Option<Tensor<f32, [batch, heads, seq_q]>>,
        delta: mut Tensor<f32, [batch, heads, seq_q]>,
    )
    specialize { T: [f16, bf16], D: [64, 96, 128, 256] }
    ship { T: [bf16, f16], D: [64, 128] }
    require value_dim <= D, "build for larger values";
    require value_dim % 8 == 0, "rows are read 16 bytes at a time: pad the values to a multiple of 8";

    body sm80 {
        // ROWS: of each thread, read at once.
        tune { ROWS: [4, 2], WARPS: [8, 4] }
        where { registers = 24 + 10 * ROWS }
        launch {
            grid = [
                ceil_div(seq_q, ROWS * (if D == 64 { 4 } else { if D == 256 { 1 } else { 2 } }) * WARPS),
                heads,
                batch,
            ],
            threads = 32 * WARPS,
        }
    }
}
