kernel! {
    /// Block-sparse attention, backward by keys: `dv = Pᵀ d_out` and `dk = scale · dSᵀ q`, with the weights P made anew from
    /// `lse` and `dS = P (d_out vᵀ - delta) score_mod'` (Dao et al., FlashAttention, arXiv 2205.14135, appendix B.2).
    ///
    /// The transposed lists of a block mask name the query blocks of each key block: `q_indices` those whose elements
    /// `mask_mod` still decides, `full_q_indices` those it keeps as a whole. The query heads that share a key head are summed
    /// one after another by the same thread, so that equal calls give equal bits. Keys in no list get 0.
    ///
    /// `key_order` is the order in which a head's key blocks are started, each of them once: those with the most queries first, so
    /// that none of them is still at work when the rest of the GPU is done.
    fn backward_kv(
        #[align(16)] q: Tensor<T, [batch, heads, seq_q, head_dim]>,
        #[align(16)] k: Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        #[align(16)] v: Tensor<T, [batch, kv_heads, seq_kv, value_dim]>,
        #[align(16)] d_out: Tensor<T, [batch, heads, seq_q, value_dim]>,
        lse: Tensor<f32, [batch, heads, seq_q]>,
        delta: Tensor<f32, [batch, heads, seq_q]>,
        q_counts: Tensor<i32, [batch | 1, heads | 1, kv_blocks]>,
        q_indices: Tensor<i32, [batch | 1, heads | 1, kv_blocks, max_blocks]>,
        full_q_counts: Option<Tensor<i32, [batch | 1, heads | 1, kv_blocks]>>,
        full_q_indices: Option<Tensor<i32, [batch | 1, heads | 1, kv_blocks, max_full_blocks]>>,
        key_order: Option<Tensor<i32, [batch | 1, kv_heads | 1, kv_blocks]>>,
        #[align(16)] #[tolerance(1e-2)] dk: out Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        #[align(16)] #[tolerance(1e-2)] dv: out Tensor<T, [batch, kv_heads, seq_kv, value_dim]>,
        scale: f32,
    )
    specialize {
        T: [f16, bf16],
        D: [64, 96, 128, 256],
        D_V: [64, 96, 128, 256] = D,
        BLOCK_Q: [64, 128],
        BLOCK_KV: [64, 128],
    }
    ship { T: [bf16, f16], D: [64, 128], BLOCK_Q: [128], BLOCK_KV: [64] }
    functions { score_mod: ScoreMod + Gradient, mask_mod: MaskMod }
    let q_blocks = ceil_div(seq_q, BLOCK_Q);
    let kv_blocks = ceil_div(seq_kv, BLOCK_KV);
    require D_V == D || (D == 256 && D_V == 128), "narrower values have a tile of their own for 256 and 128 alone";
    require head_dim <= D, "build for a larger head dimension";
    require head_dim % 8 == 0, "rows are read 16 bytes at a time: pad the head dimension to a multiple of 8";
    require value_dim <= D_V, "build for larger values";
    require value_dim % 8 == 0, "rows are read 16 bytes at a time: pad the values to a multiple of 8";
    require heads % kv_heads == 0, "each key head serves the same number of query heads";

    body sm80 {
        // TILE_KV: keys of a thread block. STEP_Q: queries that pass by at a time.
        tune { TILE_KV: [128, 64], STEP_Q: [64, 32, 16], WARPS: [8, 4, 2] }
        where {
            BLOCK_KV % TILE_KV == 0,
            // A warp keeps the sums of its keys in registers: 32 keys of narrow heads, else 16.
            TILE_KV == 16 * WARPS || (D == 64 && TILE_KV == 32 * WARPS),
            // Sums, scores and their gradients, of 255 registers a thread. (Half of the widest heads' columns a block.)
            TILE_KV * (min(D, 128) + STEP_Q) / (16 * WARPS) <= 192,
            // The second half's addresses would spill.
            D <= 128 || STEP_Q <= 32,
            // A pass of copies fills whole rows.
            STEP_Q % (32 * WARPS / (if D == 96 { 4 } else { 8 })) == 0,
            smem_bytes = 2 * (D + D_V) * (TILE_KV + 2 * STEP_Q) + 16 * STEP_Q,
            registers = min(255, TILE_KV * (min(D, 128) + STEP_Q) / (16 * WARPS) + 56),
            // With 32 rows a warp every operand feeds two products; then, warps that hide each other's barriers.
            prefer = TILE_KV / WARPS + min(CTAS_PER_SM * WARPS, 8),
        }
        launch {
            grid = [kv_blocks * (BLOCK_KV / TILE_KV) * (if D > 128 { 2 } else { 1 }), kv_heads, batch],
            threads = 32 * WARPS,
        }
    }

    body sm90 {
        tensor_maps { q: [64, 64], k: [64, 64], v: [64, 64], d_out: [64, 64] }
        // STEP_Q: queries of a slot. The more there are, the less often has the copying warp to ask for the next.
        tune { STEP_Q: [128, 64] }
        where {
            // Two sums of 64 keys and what is made of the queries, of the 232 registers of a computing thread.
            D <= 128,
            // Beside keys and values there must be room for two slots.
            STEP_Q == 64 || (D == 64 && BLOCK_Q == 128),
            // Two blocks share a multiprocessor.
            smem_bytes = 1024 * 113,
            registers = 128,
            prefer = STEP_Q,
        }
        launch { grid = [kv_blocks * (BLOCK_KV / 64), kv_heads, batch], threads = 256, persistent, queue }
    }
}
