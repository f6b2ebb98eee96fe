//! Whether memory can be had, asked before it is taken: an allocation that fails ends the process.

/// Whether so many bytes can be had at once. Nobody has a number that is too large to count.
pub(crate) fn has(bytes: Option<usize>) -> bool {
    let Some(bytes) = bytes else { return false };
    let mut memory = Vec::<u8>::new();
    // Memory that nobody uses might never be asked for.
    let had = std::hint::black_box(&mut memory).try_reserve_exact(bytes).is_ok();
    std::hint::black_box(&memory);
    had
}

/// The product, unless it overflows.
pub(crate) fn product(extents: &[usize]) -> Option<usize> {
    extents.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_a_little_and_none_for_everything() {
        assert!(has(Some(0)) && has(Some(1 << 20)));
        assert!(!has(None) && !has(Some(usize::MAX)) && !has(Some(isize::MAX as usize)));
        assert_eq!(product(&[3, 5, 7]), Some(105));
        assert_eq!(product(&[usize::MAX, 2]), None);
        assert_eq!(product(&[]), Some(1));
    }
}
