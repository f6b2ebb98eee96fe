kernel! {
    /// The rows of lists by falling length, for kernels that begin with the longest. The lists may be a caller's: a count below
    /// 0 is one of 0, and those past `longest` are alike.
    fn order(
        counts: Tensor<i32, [batch, heads, rows]>,
        full_counts: Option<Tensor<i32, [batch, heads, rows]>>,
        #[tolerance(any)] row_order: out Tensor<i32, [batch, heads, rows]>,
        longest: i32,
    )
    body sm80 {
        // One block a head.
        tune { WARPS: [16] }
        where { smem_bytes = 4 * (1024 + 32), registers = 32 }
        launch { grid = [1, heads, batch], threads = 32 * WARPS }
    }
}
