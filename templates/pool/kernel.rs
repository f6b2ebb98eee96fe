kernel! {
    /// Means of runs of BLOCK consecutive rows, over the rows that exist: the last run is often short.
    fn pool(
        #[align(16)] x: Tensor<T, [batch, heads, seq, head_dim]>,
        mean: mut Tensor<f32, [batch, heads, blocks, head_dim]>,
    )
    specialize { T: [f16, bf16], D: [64, 96, 128, 256], BLOCK: [64, 128] }
    ship { T: [bf16, f16], D: [64, 128], BLOCK: [64, 128] }
    let blocks = ceil_div(seq, BLOCK);
    require head_dim <= D, "the head dimension is larger than the kernel's: choose a larger D";
    require head_dim % 8 == 0, "rows are read 16 bytes at a time: pad the head dimension to a multiple of 8";
    body sm80 {
        tune { WARPS: [4, 8, 2] }
        where { D % 8 == 0, 32 * WARPS >= D / 8, smem_bytes = 32 * WARPS / (D / 8) * D * 4, registers = 72 }
        launch { grid = [blocks, heads, batch], threads = 32 * WARPS }
    }
}
