//! The bytes that a view reaches, and whether two views reach a common one.

use super::{Storage, Tensor};
use crate::Error;
use crate::device::{CudaDevice, Rows};
use smallvec::SmallVec;
use std::sync::{Mutex, PoisonError};

/// A dimension of a view: how often it steps, and how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Steps {
    count: u64,
    /// In bytes, more than what lies within a step.
    stride: u64,
}

/// The bytes of a view: runs without gaps, at regular distances. Whoever owns the memory, and through whichever tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Region {
    /// The GPU; none for host memory.
    ordinal: Option<usize>,
    address: u64,
    /// Behind the last byte.
    end: u64,
    /// Bytes of a run.
    run: u64,
    /// From the shortest stride to the longest.
    steps: SmallVec<[Steps; 4]>,
}

impl Region {
    /// Of a tensor's elements; none where it has none.
    pub(crate) fn of(tensor: &Tensor) -> Option<Self> {
        if tensor.elements() == 0 {
            return None;
        }
        let address = match &tensor.storage {
            Storage::Host(buffer) => buffer.bytes().as_ptr() as u64,
            Storage::Cuda(_) | Storage::External(_) => tensor.device_pointer()?,
        };
        let size = tensor.dtype.size();
        let axes =
            tensor.shape.iter().zip(&tensor.strides).filter(|(count, stride)| **count > 1 && **stride > 0);
        let mut steps: SmallVec<[Steps; 4]> = axes
            .map(|(&count, &stride)| Steps { count: count as u64, stride: (stride * size) as u64 })
            .collect();
        steps.sort_unstable_by_key(|steps| steps.stride);
        let mut run = size as u64;
        // Neighbours that touch are one run.
        let touching = steps.iter().take_while(|steps| {
            let touches = steps.stride <= run;
            run += if touches { (steps.count - 1) * steps.stride } else { 0 };
            touches
        });
        let touching = touching.count();
        steps.drain(..touching);
        let gaps = steps.iter().map(|steps| (steps.count - 1) * steps.stride).sum::<u64>();
        Some(Region { ordinal: tensor.ordinal(), address, end: address + run + gaps, run, steps })
    }

    /// Whether the two reach a common byte. Of views that lie within each other's gaps, those are told apart whose gaps come at a
    /// common distance, as the parts of a packed tensor do; of others it is assumed.
    pub(crate) fn overlaps(&self, other: &Region) -> bool {
        let apart = self.ordinal != other.ordinal || self.end <= other.address || other.end <= self.address;
        if apart {
            return false;
        }
        let periods = self.steps.iter().chain(&other.steps).map(|steps| steps.stride);
        !periods.into_iter().any(|period| self.interleaves(other, period))
    }

    /// Whether the two take different places of each `period` bytes.
    fn interleaves(&self, other: &Region, period: u64) -> bool {
        // What a view takes of a period, from its own beginning on.
        let taken = |region: &Region| {
            let within = region.steps.iter().filter(|steps| !steps.stride.is_multiple_of(period));
            region.run + within.map(|steps| (steps.count - 1) * steps.stride).sum::<u64>()
        };
        let distance = (other.address % period + period - self.address % period) % period;
        taken(self) <= distance && distance + taken(other) <= period
    }

    /// Rows of bytes that together are the view: `(address, rows, pitch)`, each row `self.run` bytes.
    fn rows(&self) -> impl Iterator<Item = Rows> + '_ {
        let (pitch, rows) = self.steps.first().map_or((self.run, 1), |steps| (steps.stride, steps.count));
        let outer = self.steps.get(1..).unwrap_or_default();
        (0..outer.iter().map(|steps| steps.count).product::<u64>()).map(move |block| {
            let (mut rest, mut address) = (block, self.address);
            for steps in outer {
                address += rest % steps.count * steps.stride;
                rest /= steps.count;
            }
            Rows { address, width: self.run, rows, pitch }
        })
    }

    /// How many bytes the view has.
    pub(super) fn bytes(&self) -> u64 {
        self.run * self.steps.iter().map(|steps| steps.count).product::<u64>()
    }

    /// Sets every byte of GPU memory.
    ///
    /// # Safety
    /// The tensor that this is of is alive and on `device`, and nothing else uses its elements meanwhile.
    pub(super) unsafe fn fill(&self, device: &CudaDevice, byte: u8) -> Result<(), Error> {
        for rows in self.rows() {
            // SAFETY: the rows lie within the tensor, which is the caller's concern.
            unsafe { device.set_rows(rows, byte)? };
        }
        Ok(())
    }

    /// Copies the view to memory at `packed`, or back from there, where its rows lie one behind another.
    ///
    /// # Safety
    /// As for [`fill`](Self::fill), and there are [`bytes`](Self::bytes) bytes of the same GPU at `packed`.
    pub(super) unsafe fn copy(&self, device: &CudaDevice, packed: u64, way: Copy) -> Result<(), Error> {
        let mut place = packed;
        for rows in self.rows() {
            let own = Rows { address: place, pitch: rows.width, ..rows };
            let (from, to) = if way == Copy::Save { (rows, own) } else { (own, rows) };
            // SAFETY: the caller's.
            unsafe { device.copy_rows(from, to)? };
            place += rows.width * rows.rows;
        }
        Ok(())
    }
}

/// Which way [`Region::copy`] goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Copy {
    Save,
    Restore,
}

impl Tensor {
    /// Whether both reach a common byte of memory, whoever owns it.
    pub(crate) fn overlaps(&self, other: &Tensor) -> bool {
        Region::of(self).zip(Region::of(other)).is_some_and(|(a, b)| a.overlaps(&b))
    }
}

/// Memory that a call works in, until its kernels are on the stream. What shares it, a clone say, is no memory to work in meanwhile:
/// the kernels of the two would come in turn.
#[derive(Debug)]
pub(crate) struct Claim(Option<Region>);

/// What is claimed; in an order of no meaning.
static CLAIMED: Mutex<Vec<Region>> = Mutex::new(Vec::new());

impl Claim {
    /// Claims a tensor's elements.
    ///
    /// # Errors
    /// [`Error::ScratchInUse`] when some of them are claimed.
    pub(super) fn of(tensor: &Tensor) -> Result<Self, Error> {
        let Some(region) = Region::of(tensor) else { return Ok(Claim(None)) };
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.iter().any(|other| other.overlaps(&region)) {
            return Err(Error::ScratchInUse);
        }
        claimed.push(region.clone());
        Ok(Claim(Some(region)))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        // No two that are claimed are equal, for such overlap.
        if let Some(place) = claimed.iter().position(|region| Some(region) == self.0.as_ref()) {
            claimed.swap_remove(place);
        }
    }
}

/// A tensor of a call, with its name in messages.
pub(crate) type Named<'a> = (&'static str, &'a Tensor);

/// Refuses what a call writes where it lies in the memory of what the call reads, or of something else that it writes.
///
/// # Errors
/// [`Error::Aliased`].
pub(crate) fn expect_apart<'a>(
    written: impl IntoIterator<Item = Named<'a>>,
    read: impl IntoIterator<Item = Named<'a>>,
) -> Result<(), Error> {
    // On the stack for any call of an attention.
    type All = SmallVec<[(&'static str, Region); 16]>;
    let region = |(name, tensor): Named<'a>| Some((name, Region::of(tensor)?));
    let written: All = written.into_iter().filter_map(region).collect();
    let aliased = |what, with| Err(Error::Aliased { what, with });
    for (place, (with, region)) in written.iter().enumerate() {
        if let Some((what, _)) = written[..place].iter().find(|(_, other)| other.overlaps(region)) {
            return aliased(*what, *with);
        }
    }
    for (what, region) in read.into_iter().filter_map(region) {
        if let Some((with, _)) = written.iter().find(|(_, other)| other.overlaps(&region)) {
            return aliased(what, *with);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::tensor::contiguous_strides;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn at(ordinal: usize, address: u64, dtype: DType, shape: &[usize], strides: &[usize]) -> Tensor {
        // SAFETY: nothing looks at the elements.
        unsafe { Tensor::from_device_pointer(ordinal, address, dtype, shape, strides) }.unwrap()
    }

    fn view(address: u64, shape: &[usize], strides: &[usize]) -> Tensor {
        at(0, address, DType::Bf16, shape, strides)
    }

    /// Every byte of a view.
    fn bytes(tensor: &Tensor) -> BTreeSet<u64> {
        let (start, size) = (tensor.device_pointer().unwrap(), tensor.dtype().size() as u64);
        let mut all = BTreeSet::new();
        tensor
            .for_each_offset(|offset| all.extend((0..size).map(|byte| start + offset as u64 * size + byte)));
        all
    }

    #[test]
    fn views_overlap_where_both_reach() {
        let one = view(4096, &[4, 8], &[8, 1]);
        for (other, overlap) in [
            (view(4096 + 62, &[1, 1], &[1, 1]), true),
            (view(4096 + 64, &[4, 8], &[8, 1]), false),
            (view(4096 - 64, &[4, 8], &[8, 1]), false),
            (view(4096 - 63, &[4, 8], &[8, 1]), true),
            (at(1, 4096, DType::Bf16, &[4, 8], &[8, 1]), false),
        ] {
            assert_eq!((one.overlaps(&other), other.overlaps(&one)), (overlap, overlap), "{other:?}");
        }
    }

    /// q, k and v of one projection: `[batch, tokens, 3, heads, d]`.
    #[test]
    fn the_parts_of_a_packed_tensor_are_apart() {
        let part = |address: u64| view(address, &[2, 100, 8, 64], &[100 * 1536, 1536, 64, 1]);
        let parts = [0, 1, 2].map(|i| part(4096 + i * 1024));
        for (i, one) in parts.iter().enumerate() {
            for (j, other) in parts.iter().enumerate() {
                assert_eq!(one.overlaps(other), i == j, "{i} {j}");
            }
        }
        // One element further, and the last of a token's is the first of the next part's.
        assert!(part(4098).overlaps(&parts[1]) && !part(4096 - 3072).overlaps(&parts[2]));
    }

    #[test]
    fn tensors_without_elements_overlap_nothing() {
        let at = |address: u64, shape: &[usize]| view(address, shape, &contiguous_strides(shape));
        // PyTorch says that tensors without elements are at 0.
        assert!(!at(0, &[1, 2, 0, 64]).overlaps(&at(0, &[1, 2, 0, 64])));
        assert!(!at(512, &[1, 0]).overlaps(&at(0, &[1, 1024])));
        assert!(at(512, &[1, 1]).overlaps(&at(0, &[1, 1024])));
    }

    #[test]
    fn host_tensors_overlap_where_they_share_their_storage() {
        let x = Tensor::zeros(DType::F32, &[4, 4]).unwrap();
        assert!(x.overlaps(&x.clone()) && x.overlaps(&x.with_strides(&[1], &[1]).unwrap()));
        assert!(!x.overlaps(&Tensor::zeros(DType::F32, &[4, 4]).unwrap()));
    }

    #[test]
    fn aliases_are_named() {
        let [a, b, c] = [0, 64, 128].map(|offset| view(4096 + offset, &[4, 8], &[8, 1]));
        assert!(expect_apart([("a", &a), ("b", &b)], [("c", &c)]).is_ok());
        let refused = |written: &[Named<'_>], read: &[Named<'_>]| {
            expect_apart(written.iter().copied(), read.iter().copied()).unwrap_err().to_string()
        };
        assert!(
            refused(&[("a", &a), ("b", &b)], &[("c", &c), ("d", &b)])
                .starts_with("`d` shares its memory with `b`")
        );
        assert!(
            refused(&[("a", &a), ("b", &b), ("e", &a)], &[]).starts_with("`a` shares its memory with `e`")
        );
    }

    fn views() -> impl Strategy<Value = Tensor> {
        let axis = || (1usize..5, 0usize..40);
        let dtype = prop_oneof![Just(DType::U8), Just(DType::Bf16), Just(DType::F32)];
        (0u64..300, dtype, prop::collection::vec(axis(), 1..4)).prop_map(|(offset, dtype, axes)| {
            let (shape, strides): (Vec<usize>, Vec<usize>) = axes.into_iter().unzip();
            at(0, 4096 + offset, dtype, &shape, &strides)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// What is said to be apart is; and a region covers the elements.
        #[test]
        fn no_common_byte_is_missed(a in views(), b in views()) {
            let common = !bytes(&a).is_disjoint(&bytes(&b));
            prop_assert!(a.overlaps(&b) || !common, "{:?} {:?}", Region::of(&a), Region::of(&b));
            prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
            let last = bytes(&a).last().copied().unwrap();
            let region = Region::of(&a).unwrap();
            prop_assert_eq!(region.end, last + 1);
        }
    }
}
