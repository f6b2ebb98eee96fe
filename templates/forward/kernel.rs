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
    ///
    /// With TAIL_BLOCK the softmax of every row begins with what `tail_block` made of its query block's dropped blocks: a value and
    /// the logarithm of its weight. With TAIL_ROW each row attends to further keys too: the means of `tail_keys`, with the logarithms of
    /// their numbers of keys as `tail_weights` for this query block. A bit of `tail_pieces` stands for 64 of them; those of pieces
    /// without a bit take no part. The functions see none of this.
    fn forward(
        #[align(16)] q: Tensor<T, [batch, heads, seq_q, head_dim]>,
        #[align(16)] k: Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        #[align(16)] v: Tensor<T, [batch, kv_heads, seq_kv, value_dim]>,
        kv_counts: Tensor<i32, [batch | 1, heads | 1, q_blocks]>,
        kv_indices: Tensor<i32, [batch | 1, heads | 1, q_blocks, max_blocks]>,
        full_kv_counts: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks]>>,
        full_kv_indices: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks, max_full_blocks]>>,
        row_order: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks]>>,
        #[align(16)] tail_out: Option<Tensor<f32, [batch, heads, q_blocks, value_dim]>>,
        tail_lse: Option<Tensor<f32, [batch, heads, q_blocks]>>,
        #[align(16)] tail_k: Option<Tensor<T, [batch, kv_heads, tail_keys, head_dim]>>,
        #[align(16)] tail_v: Option<Tensor<T, [batch, kv_heads, tail_keys, value_dim]>>,
        #[align(16)] tail_weights: Option<Tensor<f32, [batch | 1, heads | 1, q_blocks, tail_keys]>>,
        tail_pieces: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks, tail_words]>>,
        #[align(16)] #[tolerance(1e-2)] out: out Tensor<T, [batch, heads, seq_q, value_dim]>,
        #[tolerance(1e-4)] lse: out Tensor<f32, [batch, heads, seq_q]>,
        scale: f32,
    )
    include "lib/tail.rs";
    specialize { T: [f16, bf16], TAIL: TAILS = TAIL_NONE }
    ship { T: [bf16, f16], TAIL: TAILS }
    include "lib/head_dim.rs";
    include "lib/attention.rs";
    include "lib/block_size.rs";
    functions { score_mod: ScoreMod, mask_mod: MaskMod }
    let tail_words = ceil_div(ceil_div(tail_keys, TAIL_PIECE), 32);
    require tail_keys % TAIL_PIECE == 0, "means are taken in pieces of 64: pad them";
    require D_V == D || (D == 192 && D_V == 128), "narrower values have a tile of their own for 192 and 128 alone";

    body sm80 {
        tune { STEP_KV: [128, 64, 32], STAGES: [2, 1], WARPS: [2, 4, 8] }
        where {
            // A warp keeps its rows of the output in registers: 32 rows, or 16 of the widest heads.
            BLOCK_Q == WARPS * (if D_V > 128 { 16 } else { 32 }),
            BLOCK_KV % STEP_KV == 0,
            // Output and scores, of 255 registers a thread; addresses and operands need the rest.
            BLOCK_Q * (D_V + STEP_KV) / (32 * WARPS) <= 192,
            // Means and their weights cost addresses too.
            TAIL != TAIL_ROW || (BLOCK_Q * (D_V + STEP_KV) / (32 * WARPS) <= 160),
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
        tensor_maps { q: [64, 64], k: [64, 64], v: [64, 64], tail_k: [64, 64], tail_v: [64, 64], out: [16, 64] }
        // Tiles are handed out one by one: uneven rows want an order where each multiprocessor gets several.
        worth { row_order: batch * heads * q_blocks >= 4 * SM_COUNT }
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
