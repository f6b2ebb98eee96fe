kernel! {
    /// The gradients of a row tail's means, from those of each part of the queries: what every key and every value of a block gets of
    /// the mean that it is part of, and of its block's own.
    ///
    /// `dk_parts` and `dv_parts` are those of `backward_kv` with TAIL_ROW: `part_rows / entries` times the gradients of the `entries` of
    /// `tail_keys`. An entry gives each of the keys that it is the mean of their part; `run`, `seq_kv` and `block_kv` are as there. Where
    /// `entries` has no room for the blocks' own means there are none.
    fn tail_spread(
        #[align(16)] dk_parts: Tensor<T, [batch, kv_heads, part_rows, head_dim]>,
        #[align(16)] dv_parts: Tensor<T, [batch, kv_heads, part_rows, value_dim]>,
        #[align(16)] #[tolerance(1e-3)] dk_mean: out Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>,
        #[align(16)] #[tolerance(1e-3)] dv_mean: out Tensor<f32, [batch, kv_heads, kv_blocks, value_dim]>,
        entries: i32,
        seq_kv: i32,
        block_kv: i32,
        run: i32,
    )
    specialize { T: [f16, bf16] }
    ship { T: [bf16, f16] }
    include "lib/tail_entries.rs";
    require head_dim % 8 == 0, "rows are read 8 elements at a time: pad the head dimension to a multiple of 8";
    require value_dim % 8 == 0, "rows are read 8 elements at a time: pad the values to a multiple of 8";
    body sm80 {
        tune { WARPS: [4, 8, 2] }
        where { registers = 64 }
        launch { grid = [ceil_div(kv_blocks, WARPS), kv_heads, batch], threads = 32 * WARPS }
    }
}
