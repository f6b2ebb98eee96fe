shared! {
    // Of `tail_keys` and `tail_weights`: entries of a row tail that are looked at or passed over together. The means of
    // runs are filled up to a multiple of it, so that those of blocks begin with a section of their own.
    const SECTION = 64;
}
