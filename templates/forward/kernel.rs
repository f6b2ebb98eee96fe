kernel! {
    /// Block-sparse attention, forward: `softmax(score_mod(q kᵀ · scale)) v` over the key blocks that each query block
    /// lists, with the logarithm of the sum of exponentials of every row.
    ///
    /// `kv_indices` lists blocks whose elements `mask_mod` still decides, `full_kv_indices` blocks it keeps as a whole.
    /// Numbers outside the sequence are skipped, and lists need not ascend.
    ///
    /// Values may be narrower than queries and keys: multi-head latent attention has heads of 192 and 128.
    ///
    /// `row_order` is the order in which a head's query blocks are started, each of them once: the longest lists first, so
    /// that a long one at the end does not keep the GPU waiting. Results do not depend on it, and a body may do without.
    fn forward(
        #[align(16)] q: Tensor<T, [batch, heads, seq_q, head_dim]>,
        #[align(16)] k: Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        #[align(16)] v: Tensor<T, [batch, kv_heads, seq_kv, value_dim]>,
        kv_counts: Tensor<i32, [batch | 1, heads | 1, q_blocks]>,
        kv_indices: Tensor<i32, [batch | 1, heads | 1, q_blocks, max_blocks]>,
        full_kv_counts: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks]>>,
        full_kv_indices: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks, max_full_blocks]>>,
        row_order: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks]>>,
        #[align(16)] #[tolerance(1e-2)] out: out Tensor<T, [batch, heads, seq_q, value_dim]>,
        #[tolerance(1e-4)] lse: out Tensor<f32, [batch, heads, seq_q]>,
        scale: f32,
    )
    specialize {
        T: [f16, bf16],
        D: [64, 96, 128, 192, 256],
        D_V: [64, 96, 128, 192, 256] = D,
        BLOCK_Q: [64, 128],
        BLOCK_KV: [64, 128],
    }
    ship { T: [bf16, f16], D: [64, 128], BLOCK_Q: [128], BLOCK_KV: [64] }
    functions { score_mod: ScoreMod, mask_mod: MaskMod }
    let q_blocks = ceil_div(seq_q, BLOCK_Q);
    let kv_blocks = ceil_div(seq_kv, BLOCK_KV);
    require D_V == D || (D == 192 && D_V == 128), "narrower values have a tile of their own for 192 and 128 alone";
    require head_dim <= D, "build for a larger head dimension";
    require head_dim % 8 == 0, "rows are read 16 bytes at a time: pad the head dimension to a multiple of 8";
    require value_dim <= D_V, "build for larger values";
    require value_dim % 8 == 0, "rows are written 16 bytes at a time: pad the values to a multiple of 8";
    require heads % kv_heads == 0, "each key head serves the same number of query heads";

    body sm80 {
        tune { STEP_KV: [128, 64, 32], STAGES: [2, 1], WARPS: [2, 4, 8] }
        where {
            // A warp keeps its rows of the output in registers: 32 rows, or 16 of the widest heads.
            BLOCK_Q == WARPS * (if D_V > 128 { 16 } else { 32 }),
            BLOCK_KV % STEP_KV == 0,
            // Output and scores, of 255 registers a thread; addresses and operands need the rest.
            BLOCK_Q * (D_V + STEP_KV) / (32 * WARPS) <= 192,
            // Two kinds of tiles cost addresses too.
            D == D_V || STEP_KV == 32,
            // A second stage's copies cost addresses; elsewhere they would spill.
            STAGES == 1 || D == 64 || (D == 96 && BLOCK_Q == 128)
                || (D != 96 && STEP_KV == 32 && BLOCK_Q == 128),
            smem_bytes = 2 * (D * BLOCK_Q + (D + D_V) * STAGES * STEP_KV),
            registers = min(255, BLOCK_Q * (D_V + STEP_KV) / (32 * WARPS) + 64),
            // Two blocks a multiprocessor hide each other's barriers, where the grid has as many; three lose.
            prefer = min(min(CTAS_PER_SM, 2), GRID_PER_SM),
        }
        launch { grid = [q_blocks, heads, batch], threads = 32 * WARPS }
    }

    body sm90 {
        tensor_maps { q: [64, 64], k: [64, 64], v: [64, 64], out: [16, 64] }
        // PING_PONG: warpgroups take turns at the tensor cores. CTAS: blocks that share a multiprocessor. TEAMS: tiles that a
        // block works on at once. (Steps of 192 keys lose.)
        tune { STEP_KV: [128, 64], PING_PONG: [0, 1], CTAS: [2, 1], TEAMS: [2, 1] }
        where {
            // Output, scores and the weights made of them, of the 232 or 240 registers of a computing thread.
            2 * D_V + 3 * STEP_KV <= 832,
            // One warpgroup has nobody to take turns with; two with their registers fill a multiprocessor.
            BLOCK_Q == 128 || PING_PONG == 0,
            BLOCK_Q == 64 || CTAS == 1,
            // Four computing warpgroups have registers for little output and short steps, which are slow for two.
            TEAMS == 1 || (D == 64 && BLOCK_Q == 128),
            D != 64 || BLOCK_Q == 64 || (TEAMS == 2) == (STEP_KV == 64),
            // Queries and a ring of at least three key or value tiles, in rows of whole 128 bytes.
            128 * ceil_div(D, 64) * (BLOCK_Q + 3 * STEP_KV) + 1024
                <= 1024 * (if CTAS * TEAMS == 2 { 113 } else { 227 }),
            // All that a block can have: the ring takes what is left.
            smem_bytes = 1024 * (if CTAS == 2 { 113 } else { 227 }),
            registers = if BLOCK_Q == 128 { if TEAMS == 2 { 96 } else { 168 } } else { if CTAS == 2 { 128 } else { 232 } },
            // Alone on a multiprocessor, one computing warpgroup leaves the tensor cores idle under its softmax. Turns pay for
            // wide heads alone.
            prefer = 4 * min(CTAS, GRID_PER_SM) + 2 * TEAMS + (if D > 128 { PING_PONG } else { 1 - PING_PONG }),
        }
        launch { grid = [q_blocks, heads, batch], threads = TEAMS * 2 * BLOCK_Q + 128, persistent, queue }
    }
}
