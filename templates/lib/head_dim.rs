shared! {
    // Widths of the tiles that heads run in, those between padded to the next: of every kernel over heads.
    const HEAD_DIMS = [64, 96, 128, 192, 256];
    specialize { D: HEAD_DIMS }
    ship { D: [64, 128] }
    require head_dim <= D, "build for a larger head dimension";
    require head_dim % 8 == 0, "rows are read 8 elements at a time: pad the head dimension to a multiple of 8";
}
