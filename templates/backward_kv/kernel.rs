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
    ///
    /// With TAIL_BLOCK every key of a block gets its `dk_mean` and `dv_mean` too. With TAIL_ROW the keys are the means that `forward` has
    /// for keys, with weights by query block, and no list is read: the means come as often as `dk` and `dv` have rows for them, and each time
    /// sum up another part of the query blocks, as equal in size as may be; `tail_pieces` says which of them have any weight there.
    fn backward_kv(
        #[align(16)] q: Tensor<T, [batch, heads, seq_q, head_dim]>,
        #[align(16)] k: Tensor<T, [batch, kv_heads, keys, head_dim]>,
        #[align(16)] v: Tensor<T, [batch, kv_heads, keys, value_dim]>,
        #[align(16)] d_out: Tensor<T, [batch, heads, seq_q, value_dim]>,
        lse: Tensor<f32, [batch, heads, seq_q]>,
        delta: Tensor<f32, [batch, heads, seq_q]>,
        q_counts: Tensor<i32, [batch | 1, heads | 1, kv_blocks]>,
        q_indices: Tensor<i32, [batch | 1, heads | 1, kv_blocks, max_blocks]>,
        full_q_counts: Option<Tensor<i32, [batch | 1, heads | 1, kv_blocks]>>,
        full_q_indices: Option<Tensor<i32, [batch | 1, heads | 1, kv_blocks, max_full_blocks]>>,
        key_order: Option<Tensor<i32, [batch | 1, kv_heads | 1, kv_blocks]>>,
        dk_mean: Option<Tensor<f32, [batch, kv_heads, kv_blocks, head_dim]>>,
        dv_mean: Option<Tensor<f32, [batch, kv_heads, kv_blocks, value_dim]>>,
        tail_weights: Option<Tensor<f32, [batch | 1, heads | 1, q_blocks, keys]>>,
        tail_pieces: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks, tail_words]>>,
        #[align(16)] #[tolerance(1e-2)] dk: out Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        #[align(16)] #[tolerance(1e-2)] dv: out Tensor<T, [batch, kv_heads, seq_kv, value_dim]>,
        scale: f32,
    )
    include "lib/tail.rs";
    specialize { T: [f16, bf16], TAIL: TAILS = TAIL_NONE }
    ship { T: [bf16, f16], TAIL: TAILS }
    include "lib/head_dim.rs";
    include "lib/attention.rs";
    include "lib/block_size.rs";
    include "lib/backward.rs";
    let tail_words = ceil_div(ceil_div(keys, TAIL_PIECE), 32);
    require (if TAIL == TAIL_ROW { seq_kv % keys + keys % BLOCK_KV } else { seq_kv - keys }) == 0,
        "gradients have the rows of keys, of means a multiple of whole blocks";

    body sm80 {
        // TILE_KV: keys of a thread block. STEP_Q: queries that pass by at a time.
        tune { TILE_KV: [128, 64], STEP_Q: [64, 32, 16], WARPS: [8, 4, 2] }
        where {
            BLOCK_KV % TILE_KV == 0,
            // A warp keeps the sums of its keys in registers: 32 keys of narrow heads, else 16.
            TILE_KV == 16 * WARPS || (D == 64 && TILE_KV == 32 * WARPS),
            // Weights of means cost registers too.
            TAIL != TAIL_ROW || (TILE_KV == 16 * WARPS && STEP_Q <= 32),
            // Sums, scores and their gradients, of 255 registers a thread. (Half of the widest heads' columns a block.)
            TILE_KV * (min(D, 128) + STEP_Q) / (16 * WARPS) <= 192,
            // The second half's addresses would spill.
            D <= 128 || STEP_Q <= 32,
            // A pass of copies fills whole rows.
            STEP_Q % (32 * WARPS / (if D % 64 == 0 { 8 } else { 4 })) == 0,
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
        // A head's tiles of 64 keys are handed out one by one, to two thread blocks a multiprocessor. With fewer tiles a head the
        // last ones would not be the short ones (278 tiles on 132 multiprocessors lose 1 %, 512 gain 2 %).
        worth { key_order: ceil_div(seq_kv, 64) >= 3 * SM_COUNT }
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
