kernel! {
    /// Block-sparse attention, backward by queries: `dq = scale · dS k`, with the weights P made anew from `lse`,
    /// `dS = P (d_out vᵀ - delta) score_mod'` and `delta = rowsum(d_out · out) - d_lse` (Dao et al., FlashAttention, arXiv
    /// 2205.14135, appendix B.2, with the gradient of lse). `backward_kv` needs delta too, and runs after.
    ///
    /// Lists are those of `forward`. Every sum is one thread's, in the order of the lists: equal calls give equal bits.
    /// A query that attends to nothing gets a dq and a delta of 0, whatever it holds.
    ///
    /// With TAIL_BLOCK every query of a block gets its `dq_mean` too. With TAIL_ROW the queries attend to the means of `forward` too.
    fn backward_q(
        #[align(16)] q: Tensor<T, [batch, heads, seq_q, head_dim]>,
        #[align(16)] k: Tensor<T, [batch, kv_heads, seq_kv, head_dim]>,
        #[align(16)] v: Tensor<T, [batch, kv_heads, seq_kv, value_dim]>,
        #[align(16)] out: Tensor<T, [batch, heads, seq_q, value_dim]>,
        #[align(16)] d_out: Tensor<T, [batch, heads, seq_q, value_dim]>,
        lse: Tensor<f32, [batch, heads, seq_q]>,
        d_lse: Option<Tensor<f32, [batch, heads, seq_q]>>,
        kv_counts: Tensor<i32, [batch | 1, heads | 1, q_blocks]>,
        kv_indices: Tensor<i32, [batch | 1, heads | 1, q_blocks, max_blocks]>,
        full_kv_counts: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks]>>,
        full_kv_indices: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks, max_full_blocks]>>,
        dq_mean: Option<Tensor<f32, [batch, heads, q_blocks, head_dim]>>,
        #[align(16)] tail_k: Option<Tensor<T, [batch, kv_heads, tail_keys, head_dim]>>,
        #[align(16)] tail_v: Option<Tensor<T, [batch, kv_heads, tail_keys, value_dim]>>,
        #[align(16)] tail_weights: Option<Tensor<f32, [batch | 1, heads | 1, q_blocks, tail_keys]>>,
        tail_pieces: Option<Tensor<i32, [batch | 1, heads | 1, q_blocks, tail_words]>>,
        #[align(16)] #[tolerance(1e-2)] dq: out Tensor<T, [batch, heads, seq_q, head_dim]>,
        #[tolerance(1e-5)] delta: out Tensor<f32, [batch, heads, seq_q]>,
        scale: f32,
    )
    include "lib/tail.rs";
    specialize { T: [f16, bf16], TAIL: TAILS = TAIL_NONE }
    ship { T: [bf16, f16], TAIL: TAILS }
    include "lib/head_dim.rs";
    include "lib/attention.rs";
    include "lib/block_size.rs";
    include "lib/backward.rs";
    let tail_words = ceil_div(ceil_div(tail_keys, TAIL_PIECE), 32);
    require tail_keys % TAIL_PIECE == 0, "means are taken in pieces of 64: pad them";

    body sm80 {
        // TILE_Q: queries of a thread block. STEP_KV: keys that pass by at a time.
        tune { TILE_Q: [128, 64], STEP_KV: [64, 32, 16], WARPS: [4, 8, 2] }
        where {
            BLOCK_Q % TILE_Q == 0,
            // A warp keeps the sums of its queries in registers: 32 queries, of the widest heads 16.
            TILE_Q == 16 * WARPS || (D <= 128 && TILE_Q == 32 * WARPS),
            // Means and their weights cost addresses too.
            TAIL != TAIL_ROW || (TILE_Q == 16 * WARPS && STEP_KV <= 32),
            // Sums, scores and their gradients, of 255 registers a thread.
            TILE_Q * (D + 2 * STEP_KV) / (32 * WARPS) <= 192,
            // The widest heads' addresses would spill.
            D <= 128 || STEP_KV <= 32,
            // A pass of copies fills whole rows.
            STEP_KV % (32 * WARPS / (if D % 64 == 0 { 8 } else { 4 })) == 0,
            smem_bytes = 2 * (D + D_V) * (TILE_Q + 2 * STEP_KV),
            registers = min(255, TILE_Q * (D + 2 * STEP_KV) / (32 * WARPS) + 56),
            // With 32 rows a warp every operand feeds two products; then, warps that hide each other's barriers.
            prefer = TILE_Q / WARPS + min(CTAS_PER_SM * WARPS, 8),
        }
        launch { grid = [q_blocks * (BLOCK_Q / TILE_Q), heads, batch], threads = 32 * WARPS }
    }

    body sm90 {
        tensor_maps {
            q: [64, 64],
            k: [64, 64],
            v: [64, 64],
            tail_k: [64, 64],
            tail_v: [64, 64],
            out: [64, 64],
            d_out: [64, 64],
            dq: [16, 64],
        }
        // PING_PONG: warpgroups take turns at the tensor cores. Q_KEPT: queries stay in registers, for products with both
        // operands in shared memory are bound by reading them.
        tune { STEP_KV: [128, 64], PING_PONG: [1, 0], Q_KEPT: [1, 0] }
        where {
            // One warpgroup has nobody to take turns with; and who waits for values within its turn needs a slot that does not
            // depend on the other's: of the widest heads the ring has three.
            (BLOCK_Q == 128 && D <= 128) || PING_PONG == 0,
            // Sums, scores, their gradients and the operand made of those, of the 240 registers of a computing thread.
            2 * D + 5 * STEP_KV <= 832,
            // Elsewhere the products would wait for each other, there being no registers; and where as many are kept as the
            // operand of the last product has, ptxas 13.0 gives both the same ones.
            Q_KEPT == 0 || D == 128 || (D == 96 && STEP_KV == 64) || (D == 64 && STEP_KV == 128 && BLOCK_Q == 128),
            // Queries, their d_out and a ring of at least three key or value tiles, in rows of whole 128 bytes.
            128 * (ceil_div(D, 64) * (BLOCK_Q + 3 * STEP_KV) + ceil_div(D_V, 64) * BLOCK_Q) + 1024
                <= 1024 * (if BLOCK_Q == 64 { 113 } else { 227 }),
            // All that a block can have: the ring takes what is left. Blocks of one computing warpgroup share a multiprocessor.
            smem_bytes = 1024 * (if BLOCK_Q == 64 { 113 } else { 227 }),
            registers = if BLOCK_Q == 64 { 128 } else { 168 },
        }
        launch { grid = [q_blocks, heads, batch], threads = 2 * BLOCK_Q + 128, persistent, queue }
    }
}
