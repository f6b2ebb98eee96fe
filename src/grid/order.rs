//! The order itself: columns of the grid, swept along t, one beside the other.
//!
//! A column is a tile's cross-section (h, w) with the whole length of t. It is swept slice by slice, so that a tile of 4×4×4
//! is four slices, and a run of 64 tokens is a cube *wherever it begins* in the column: a number of frames that is no
//! multiple of the tile's costs nothing but the turns. The sweep turns at each column's end and goes back through its
//! neighbour, so that the run across a turn is made of neighbouring slices of neighbouring columns; rows of columns are
//! joined in the same way.
//!
//! Along h and w the grid is cut into strips as wide as the tile or, where the length is no multiple, a token or so wider
//! or narrower: one strip of 1 left over at the edge would make columns 16 frames long of every 64 tokens.

use std::ops::Range;

/// The cells of a grid, each as its raster number `(t · h_len + h) · w_len + w`, in the new order.
pub(super) fn cells(grid: [usize; 3], tile: [usize; 3]) -> Vec<i32> {
    let [frames, height, width] = grid;
    let (bands, strips) = (split(height, tile[1]), split(width, tile[2]));
    let mut cells = Vec::with_capacity(frames * height * width);
    let (mut rightwards, mut forwards) = (true, true);
    for rows in &bands {
        for columns in directed(strips.len(), rightwards).map(|i| &strips[i]) {
            for t in directed(frames, forwards) {
                for h in rows.clone() {
                    cells.extend(columns.clone().map(|w| ((t * height + h) * width + w) as i32));
                }
            }
            forwards = !forwards;
        }
        rightwards = !rightwards;
    }
    cells
}

/// 0 to `n`, or back.
fn directed(n: usize, forwards: bool) -> impl Iterator<Item = usize> {
    (0..n).map(move |i| if forwards { i } else { n - 1 - i })
}

/// Cuts a length into strips as near to `side` as a whole number of them allows. Those of exactly that width come
/// first: until then every column begins where a slice of the block does.
fn split(length: usize, side: usize) -> Vec<Range<usize>> {
    let count = ((length + side / 2) / side).max(1);
    let mut widths: Vec<usize> = (0..count).map(|i| (i + 1) * length / count - i * length / count).collect();
    widths.sort_by_key(|&width| width != side);
    let mut end = 0;
    let strip = |width| {
        end += width;
        end - width..end
    };
    widths.into_iter().map(strip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_are_near_the_side_and_cover_the_length() {
        let widths = |length, side| split(length, side).iter().map(Range::len).collect::<Vec<_>>();
        assert_eq!(widths(16, 4), [4; 4]);
        assert_eq!(widths(13, 4), [4, 4, 5]);
        assert_eq!(widths(15, 4), [4, 4, 4, 3]);
        assert_eq!(widths(30, 4), [4, 4, 4, 4, 4, 4, 3, 3]);
        assert_eq!(widths(1, 4), [1]);
        assert_eq!(widths(45, 8), [8, 8, 8, 7, 7, 7]);
        for length in 1..100 {
            for side in 1..20 {
                let strips = split(length, side);
                assert_eq!((strips[0].start, strips.last().unwrap().end), (0, length));
                assert!(strips.windows(2).all(|pair| pair[0].end == pair[1].start));
                assert!(
                    strips.iter().all(|strip| !strip.is_empty() && strip.len() <= 2 * side),
                    "{length} {side}"
                );
            }
        }
    }

    #[test]
    fn a_column_turns_at_its_end() {
        // One frame beside the next, slices of 1×1: t goes up, then down.
        assert_eq!(cells([2, 1, 2], [1, 1, 1]), [0, 2, 3, 1]);
        // Slices of 2×2.
        assert_eq!(cells([2, 2, 2], [2, 2, 2]), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
