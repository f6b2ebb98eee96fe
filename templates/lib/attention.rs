shared! {
    // Over lib/head_dim.rs and lib/block_size.rs: what the forward and both kernels of the backward are made for.
    specialize { D_V: HEAD_DIMS = D }
    let q_blocks = ceil_div(seq_q, BLOCK_Q);
    let kv_blocks = ceil_div(seq_kv, BLOCK_KV);
    require value_dim <= D_V, "build for larger values";
    require value_dim % 8 == 0, "rows are read 8 elements at a time: pad the values to a multiple of 8";
    require heads % kv_heads == 0, "each key head serves the same number of query heads";
}
