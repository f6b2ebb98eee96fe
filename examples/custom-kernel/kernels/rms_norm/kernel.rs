kernel! {
    /// RMS normalisation over the head dimension, as video transformers apply it to q and k before the attention:
    /// `y = x / sqrt(mean(x²) + epsilon) · weight`, row by row, in f32.
    fn rms_norm(
        #[align(16)] x: Tensor<T, [batch, heads, seq, head_dim]>,
        #[align(16)] weight: Tensor<T, [head_dim]>,
        #[align(16)] #[tolerance(1e-2)] y: out Tensor<T, [batch, heads, seq, head_dim]>,
        epsilon: f32,
    )
    specialize { T: [bf16, f16], D: [64, 128, 256] }
    ship { T: [bf16], D: [64, 128] }
    require head_dim == D, "build for this head dimension";
    body sm80 {
        // ROWS rows a thread block, 8 elements a thread.
        tune { ROWS: [16, 8, 32] }
        where { ROWS * D / 8 % 32 == 0, registers = 40 }
        launch { grid = [ceil_div(seq, ROWS), heads, batch], threads = ROWS * D / 8 }
    }
}
