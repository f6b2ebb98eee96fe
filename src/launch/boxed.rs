//! What the copy engine (TMA) can read of a tensor.

use crate::device::BoxedTensor;
use crate::{DType, Tensor};
use smallvec::SmallVec;

impl BoxedTensor {
    /// What stands for a tensor that is not there. Its body must not copy from it.
    pub(crate) fn absent(arg: &'static str) -> Self {
        let (extents, strides, sides) = Default::default();
        BoxedTensor { arg, pointer: 0, dtype: DType::U8, extents, strides, sides }
    }

    /// A tensor on a GPU of which boxes of `[rows, columns]` of the last two dimensions are read; the reason when they
    /// cannot be.
    pub(crate) fn new(arg: &'static str, tensor: &Tensor, [rows, columns]: [i64; 2]) -> Result<Self, String> {
        let rank = tensor.shape().len();
        if !(2..=5).contains(&rank) {
            return Err(format!("it has {rank} dimensions, needed 2 to 5"));
        }
        let Some(pointer) = tensor.device_pointer() else {
            return Err("it is on the CPU".to_owned());
        };
        if !pointer.is_multiple_of(16) {
            return Err(format!("its address is {pointer}, needed a multiple of 16"));
        }
        let size = tensor.dtype().size() as u64;
        let side = |what: &str, side: i64| {
            u32::try_from(side)
                .ok()
                .filter(|side| (1..=256).contains(side))
                .ok_or_else(|| format!("a box of {side} {what} is asked for, needed 1 to 256"))
        };
        let mut sides: SmallVec<[u32; 5]> = SmallVec::from_elem(1, rank);
        (sides[0], sides[1]) = (side("columns", columns)?, side("rows", rows)?);
        if !(u64::from(sides[0]) * size).is_multiple_of(16) {
            return Err(format!(
                "a box has rows of {} bytes, needed a multiple of 16",
                u64::from(sides[0]) * size
            ));
        }
        let extents: SmallVec<[u64; 5]> = tensor.shape().iter().rev().map(|&extent| extent as u64).collect();
        // A stride along an extent of 1 is never taken, whatever it says, but the driver looks at it.
        let harmless = (extents[0] * size).next_multiple_of(16);
        let strides = (0..rank - 1).rev().map(|axis| match tensor.shape()[axis] {
            1 => harmless,
            _ => tensor.strides()[axis] as u64 * size,
        });
        let strides: SmallVec<[u64; 5]> = strides.collect();
        if let Some(stride) = strides.iter().find(|stride| !stride.is_multiple_of(16) || **stride >= 1 << 40)
        {
            return Err(format!("a stride is {stride} bytes, needed a multiple of 16 below 2^40"));
        }
        Ok(BoxedTensor { arg, pointer, dtype: tensor.dtype(), extents, strides, sides })
    }
}
