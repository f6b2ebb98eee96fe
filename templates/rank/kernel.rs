kernel! {
    /// Scores and selection in one: the logits of a query block against all key blocks (the products of the means times
    /// `scale`) stay in shared memory, and from them each row's key blocks are picked as `select` says, with the same
    /// results. CAPACITY: the most key blocks of a row.
    ///
    /// `partial_logits` stand in for the logits of the blocks whose class is 1 (see `score_partial`).
    ///
    /// `row_order` becomes the query blocks of each head by falling number of key blocks, equal ones in any order, for the
    /// forward; for it `finished` must be 0, and is 0 again afterwards.
    fn rank(
        #[align(16)] q_mean: Tensor<f32, [batch, heads, q_blocks, head_dim]>,
        #[align(16)] k_mean: Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>,
        classes: Option<Tensor<u8, [batch | 1, heads | 1, q_blocks, kv_blocks]>>,
        partial_logits: Option<Tensor<f32, [batch, heads, q_blocks, kv_blocks]>>,
        #[tolerance(share = 0.01)] kv_counts: out Tensor<i32, [batch, heads, q_blocks]>,
        #[tolerance(share = 0.01)] kv_indices: out Tensor<i32, [batch, heads, q_blocks, kv_blocks]>,
        #[tolerance(share = 0.01)] full_kv_counts: out Option<Tensor<i32, [batch, heads, q_blocks]>>,
        #[tolerance(share = 0.01)] full_kv_indices: out Option<Tensor<i32, [batch, heads, q_blocks, kv_blocks]>>,
        #[tolerance(share = 0.01)] keep: out Tensor<i32, [batch, heads, q_blocks, words]>,
        #[tolerance(share = 0.01)] full_keep: out Option<Tensor<i32, [batch, heads, q_blocks, words]>>,
        #[tolerance(any)] row_order: out Option<Tensor<i32, [batch, heads, q_blocks]>>,
        finished: counters Option<Tensor<i32, [batch, heads]>>,
        scale: f32,
        top_k: f32,
        top_p: f32,
    )
    specialize { D: [64, 96, 128, 192, 256], CAPACITY: [384, 640, 1280, 3328, 4096] }
    ship { D: [64, 128], CAPACITY: [384, 640, 1280] }
    let words = ceil_div(kv_blocks, 32);
    require head_dim <= D, "the head dimension is larger than the kernel's: choose a larger D";
    require head_dim % 8 == 0, "means are read 16 bytes at a time: pad the head dimension to a multiple of 8";
    require heads % kv_heads == 0, "each key head serves the same number of query heads";
    require kv_blocks <= CAPACITY, "a row of key blocks does not fit: choose a larger CAPACITY, or `score` and `select`";
    body sm80 {
        tune { ROWS: [16, 24, 32, 40, 8, 4], WARPS: [16, 24, 20, 8, 12, 10], CTAS: [2, 1] }
        where {
            // Every warp selects from as many rows.
            ROWS % WARPS == 0 || CAPACITY > 1280 && WARPS == 8,
            // Fewer rows only where more do not fit: every thread block reads all the keys' means.
            ROWS >= 16 || CAPACITY > 1280 || D > 128,
            // The operands of a product of that many rows.
            ROWS <= 16 || WARPS * CTAS <= 24,
            smem_bytes = 4 * (2 * 16 * ceil_div(ROWS, 16) * D + ROWS * (CAPACITY + 8) + 32 * WARPS),
            registers = min(128, 2048 / (WARPS * CTAS)),
            // The rows that a multiprocessor gets, for thread blocks are few and the last wave of them is rarely full (a product
            // has 16, whether they are there or not); then warps, which hide each other's waits.
            prefer = 100000 - 100 * GRID_PER_SM * max(ROWS, 16) + WARPS * min(CTAS, CTAS_PER_SM),
        }
        launch { grid = [ceil_div(q_blocks, ROWS), heads, batch], threads = 32 * WARPS }
    }
}
