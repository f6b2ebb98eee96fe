kernel! {
    /// Rows in another order: row i of `out` is row `order[i]` of `x`. An entry that is no row gives a row of zeros.
    fn regroup(
        x: Tensor<T, [batch, heads, seq, width]>,
        order: Tensor<i32, [seq]>,
        out: out Tensor<T, [batch, heads, seq, width]>,
    )
    specialize { T: [bf16, f16, f32] }
    ship { T: [bf16, f16, f32] }
    body sm80 {
        tune { ROWS: [16, 64, 4], WARPS: [8, 4] }
        where { registers = 48 }
        launch { grid = [ceil_div(seq, ROWS), heads, batch], threads = 32 * WARPS }
    }
}
