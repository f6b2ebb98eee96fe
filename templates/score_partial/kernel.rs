kernel! {
    /// The logits of the pairs of blocks that a mask function keeps in part (`classes` is 1), over what `logits` holds there: the
    /// product of the queries' mean with the mean of those keys that the function keeps for at least one query of the block, times
    /// `scale`; NaN and the rest as `score` has them. Keys that the function drops take no part, whatever they hold: padding
    /// decides nothing. Other logits stay as they are. With a FINE that is not 0, the largest of such products of the runs of FINE
    /// keys, as in `score_keys`.
    fn score_partial(
        #[align(16)] q_mean: Tensor<f32, [batch, heads, q_blocks, head_dim]>,
        #[align(16)] k: Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        #[align(16)] k_mean: Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>,
        classes: Tensor<u8, [batch, heads, q_blocks, kv_blocks]>,
        #[tolerance(any)] logits: inout Tensor<f32, [batch, heads, q_blocks, kv_blocks]>,
        seq_q: i32,
        scale: f32,
    )
    specialize { T: [f16, bf16] }
    ship { T: [bf16, f16] }
    include "lib/head_dim.rs";
    include "lib/block_size.rs";
    specialize { FINE: [0, 4] = 0 }
    let kv_blocks = ceil_div(seq_kv, BLOCK_KV);
    functions { mask_mod: MaskMod }
    require heads % kv_heads == 0, "each key head serves the same number of query heads";
    body sm80 {
        tune { WARPS: [4, 8] }
        where { BLOCK_KV % 32 == 0, smem_bytes = 0, registers = 64 }
        launch { grid = [q_blocks * ceil_div(ceil_div(kv_blocks, 32), WARPS), heads, batch], threads = 32 * WARPS }
    }
}
