kernel! {
    /// Which of `blocks` key blocks a selected mask drops, a bit each: those that neither `keep` nor `full_keep` names,
    /// and with `classes` only those of them that are FULL (2). A block that a mask function empties or cuts is not
    /// dropped but forbidden, in whole or in part. Bits past `blocks` are 0, whatever the given ones are.
    fn dropped(
        keep: Tensor<i32, [batch, heads, q_blocks, words]>,
        full_keep: Option<Tensor<i32, [batch, heads, q_blocks, words]>>,
        classes: Option<Tensor<u8, [batch | 1, heads | 1, q_blocks, kv_blocks]>>,
        dropped: out Tensor<i32, [batch, heads, q_blocks, words]>,
        blocks: i32,
    )
    body sm80 {
        tune { WARPS: [4, 8] }
        where { registers = 40 }
        launch { grid = [ceil_div(q_blocks, WARPS), heads, batch], threads = 32 * WARPS }
    }
}
