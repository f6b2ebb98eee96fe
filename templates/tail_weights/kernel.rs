kernel! {
    /// How many keys each entry of `tail_keys` stands for in each query block, as natural logarithms: -inf where none.
    ///
    /// A run all of whose blocks are `dropped` or `whole` stands for the keys of those that are dropped; in the others,
    /// each dropped block's own mean stands for its keys. `whole`: kept blocks all of whose keys the queries may attend
    /// to; without it every block that is not dropped is one. Bits past `blocks` say nothing. Bit p of a row of
    /// `pieces` says whether any of the entries from SECTION p on, as many as that, stands for keys.
    fn tail_weights(
        dropped: Tensor<i32, [batch | 1, heads | 1, q_blocks, words]>,
        whole: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks, words]>>,
        weights: out Tensor<f32, [batch, heads, q_blocks, tail_keys]>,
        pieces: out Tensor<i32, [batch, heads, q_blocks, piece_words]>,
        blocks: i32,
        seq_kv: i32,
        block_kv: i32,
        run: i32,
    )
    include "lib/tail_entries.rs";
    let piece_words = ceil_div(ceil_div(tail_keys, SECTION), 32);
    body sm80 {
        tune { WARPS: [4, 8] }
        where { SECTION == 64, registers = 40 }
        launch { grid = [q_blocks, heads, batch], threads = 32 * WARPS }
    }
}
