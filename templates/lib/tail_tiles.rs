shared! {
    // Of tail_tiles.cuh. Columns of a result that the warps add up at a time, and floats from one row of theirs to the
    // next: four rows fall into different banks, 8 bytes at a time.
    const MERGED = 32;
    const PITCH = MERGED + 8;
}
