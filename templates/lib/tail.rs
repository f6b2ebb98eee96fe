shared! {
    // What stands for the blocks that a mask drops: nothing, a value for each query block, or means that every query attends to.
    const TAIL_NONE = 0;
    const TAIL_BLOCK = 1;
    const TAIL_ROW = 2;
    const TAILS = [0, 1, 2];
    // Means that are taken or left together.
    const TAIL_PIECE = 64;
}
