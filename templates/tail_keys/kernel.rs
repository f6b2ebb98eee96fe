kernel! {
    /// What a row tail attends to in the place of dropped blocks: the means of runs of `run` key blocks over all of
    /// their keys, and behind them, where `tail_keys` has room for more, those of single blocks.
    ///
    /// The runs' means, as many as begin below `kv_blocks`, are filled up with 0 to a multiple of SECTION, and the
    /// blocks' to the end. `block_kv` keys are a block's, the last one's are what is left of `seq_kv`.
    /// A mean value that is no number, or infinite, becomes 0 and its key NaN: who attends to it gets NaN, who does not has nothing of it.
    fn tail_keys(
        #[align(16)] k_mean: Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>,
        #[align(16)] v_mean: Tensor<f32, [batch, kv_heads, kv_blocks, value_dim]>,
        #[align(16)] #[tolerance(1e-2)] tail_k: out Tensor<T, [batch, kv_heads, tail_keys, head_dim]>,
        #[align(16)] #[tolerance(1e-2)] tail_v: out Tensor<T, [batch, kv_heads, tail_keys, value_dim]>,
        seq_kv: i32,
        block_kv: i32,
        run: i32,
    )
    specialize { T: [f16, bf16] }
    ship { T: [bf16, f16] }
    include "lib/tail_entries.rs";
    require head_dim % 8 == 0, "rows are written 8 elements at a time: pad the head dimension to a multiple of 8";
    require value_dim % 8 == 0, "rows are written 8 elements at a time: pad the values to a multiple of 8";
    body sm80 {
        tune { WARPS: [4, 8, 2] }
        where { registers = 64 }
        launch { grid = [ceil_div(tail_keys, WARPS), kv_heads, batch], threads = 32 * WARPS }
    }
}
