//! A schedule against rows moved on the host: of widths that are copied whole words at a time and of ones that are not, in an order of
//! which two entries are no rows.

use super::Args;
use crate::Tensor;
use crate::check::whole_numbers;
use crate::launch::{Probe, Verdict};

const ROWS: usize = 53;

pub(super) fn check(args: &Args<'_>, probe: &Probe<'_>) -> Verdict {
    let dtype = args.x.dtype();
    let order: Vec<i32> =
        (0..ROWS as i32).rev().map(|row| if row % 26 == 7 { row - 60 } else { row }).collect();
    let list = Tensor::from_slice(&order, &[ROWS])?.to(probe.device())?;
    for width in [1, 37, 72] {
        let shape = [2, 3, ROWS, width];
        let x = whole_numbers(dtype, &shape)?;
        let mut out = probe.poisoned(dtype, &shape)?;
        let small = Args { x: &x.to(probe.device())?, order: &list, out: &mut out };
        // SAFETY: a whole case of its own, which is read on the host.
        unsafe { probe.launch(&small)? };
        let (found, values) = (out.to_f32_vec()?, x.to_f32_vec()?);
        let moved = |(i, &found): (usize, &f32)| {
            let (head, place, column) = (i / width / ROWS, i / width % ROWS, i % width);
            let row = usize::try_from(order[place]).ok();
            found == row.map_or(0.0, |row| values[(head * ROWS + row) * width + column])
        };
        if let Some(at) = found.iter().enumerate().position(|element| !moved(element)) {
            return Ok(Err(format!(
                "its rows differ from those moved on the host, first at {at} of {shape:?}"
            )));
        }
    }
    Ok(Ok(()))
}
