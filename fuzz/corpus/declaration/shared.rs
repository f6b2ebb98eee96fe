kernel! {
    /// The rows of lists by falling length.
    fn order(
        counts: Tensor<i32, [batch, heads, rows]>,
        weights: Option<Tensor<i32, [batch, heads, rows]>>,
        row_order: mut Tensor<i32, [batch, heads, rows]>,
    )
    include "lib/row_order.rs";
    const WIDTHS = [64, 128];
    const TWO = 2 * ORDER_BINS;
    specialize { D: WIDTHS, HALF: [32, 64] = D / 2 }
    require HALF < D, "less than the whole";
    body sm80 {
        tune { WARPS: [16, 8], STAGES: 1..=3 }
        tune on sm_86, sm_120a { STAGES: [1] }
        where { smem_bytes = 4 * ORDER_WORDS + TWO, registers = 32 }
        worth { weights: batch * heads >= 2 * SM_COUNT }
        launch { grid = [1, heads, batch], threads = 32 * WARPS }
    }
}
