shared! {
    // What both products of the block tail's backward have in common, over lib/head_dim.rs.
    specialize { D_V: HEAD_DIMS = D }
    let words = ceil_div(kv_blocks, 32);
    require D != 192, "the backward has no tile of 192: heads of that run in that of 256";
    require D_V == D || (D == 256 && D_V == 128), "narrower values have a tile of their own for 256 and 128 alone";
    require value_dim <= D_V, "build for larger values";
    require value_dim % 8 == 0, "rows are read 8 elements at a time: pad the values to a multiple of 8";
    require heads % kv_heads == 0, "each key head serves the same number of query heads";
}
