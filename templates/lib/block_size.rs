shared! {
    // The sparse blocks: queries and keys that are kept or dropped as a whole, the default first.
    specialize { BLOCK_Q: [128, 64], BLOCK_KV: [64, 128] }
}
