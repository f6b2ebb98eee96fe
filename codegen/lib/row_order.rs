shared! {
    // For bodies that include lib/row_order.cuh. Lengths are sorted into bins, one for each length where there are so many.
    const ORDER_BINS = 1024;
    // The bins' words of shared memory: a lane's lie one off those of its neighbour.
    const ORDER_WORDS = ORDER_BINS + ORDER_BINS / 32;
}
