//! GPU memory that somebody else owns: a tensor of PyTorch's, say.

use super::region::Claim;
use super::{Dims, Storage, Tensor, TensorError, dense_strides, element_count};
use crate::device::{CudaDevice, DeviceError};
use crate::{DType, Error};

/// An address on a GPU. Nothing is freed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct External {
    pub(super) ordinal: usize,
    pub(super) address: u64,
    /// From the address to the end of the last element that a view reaches.
    pub(super) bytes: usize,
}

impl Tensor {
    /// A view of GPU memory that somebody else owns: element `[0, 0, …]` is at `address` of GPU `ordinal`. Strides are
    /// in elements.
    ///
    /// Making it touches no GPU. A kernel that uses it runs on Tilewright's stream of that GPU.
    ///
    /// # Errors
    /// [`TensorError::TooLarge`] when the view does not fit in an address space, [`TensorError::Strides`] unless there
    /// is one stride for every dimension.
    ///
    /// # Safety
    /// While this tensor or a clone of it is in use, every element of the view is memory of that GPU, in its primary
    /// context; what wrote it is done, and nothing else writes it (for an output: uses it) meanwhile.
    pub unsafe fn from_device_pointer(
        ordinal: usize,
        address: u64,
        dtype: DType,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<Self, Error> {
        let too_large = || TensorError::TooLarge { shape: shape.to_vec(), dtype };
        let count = element_count(shape, dtype)?;
        // The last element decides the size of the storage; `with_strides` does the checks that every view has.
        let reach = shape.iter().zip(strides).try_fold(1usize, |reach, (&dim, &stride)| {
            dim.saturating_sub(1).checked_mul(stride).and_then(|step| reach.checked_add(step))
        });
        let bytes = reach.and_then(|reach| reach.checked_mul(dtype.size())).ok_or_else(too_large)?;
        // A tensor without elements reaches nothing, wherever it is said to be.
        let bytes = if count == 0 { 0 } else { bytes };
        if !u64::try_from(bytes).is_ok_and(|bytes| address.checked_add(bytes).is_some()) {
            return Err(too_large().into());
        }
        let storage = Storage::External(External { ordinal, address, bytes });
        Tensor { dtype, shape: Dims::new(), strides: Dims::new(), storage }.with_strides(shape, strides)
    }
}

/// One buffer of bytes cut into tensors, one after another, each where 256 bytes begin anew.
pub(crate) struct Arena {
    memory: External,
    used: usize,
    /// As long as tensors are cut from it and put to work. Absent where nothing is.
    _claim: Option<Claim>,
}

impl Arena {
    /// Where tensors begin: what CUDA's own allocations are aligned to.
    const ALIGN: usize = 256;

    /// Cuts up a contiguous tensor on a GPU; none on the CPU.
    ///
    /// # Errors
    /// [`Error::ScratchInUse`] while there is another of the same memory.
    pub(crate) fn of(buffer: &Tensor) -> Result<Option<Self>, Error> {
        let (Some(ordinal), Some(address)) = (buffer.ordinal(), buffer.device_pointer()) else {
            return Ok(None);
        };
        let bytes = buffer.elements() * buffer.dtype().size();
        let _claim = Some(Claim::of(buffer)?);
        Ok(Some(Arena { memory: External { ordinal, address, bytes }, used: 0, _claim }))
    }

    /// A buffer of any size that is nowhere: for asking how much would be used of it.
    pub(crate) fn to_measure() -> Self {
        Arena { memory: External { ordinal: 0, address: 0, bytes: usize::MAX }, used: 0, _claim: None }
    }

    /// The bytes that suffice for the tensors made, whatever the buffer's address.
    pub(crate) fn needed(&self) -> usize {
        self.used.saturating_add(Self::ALIGN)
    }

    /// The next tensor, contiguous; its elements are whatever the memory holds.
    ///
    /// # Errors
    /// [`Error::Scratch`] when the buffer is used up.
    pub(crate) fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
        let bytes = element_count(shape, dtype)? * dtype.size();
        let External { address, bytes: available, .. } = self.memory;
        let begin = address
            .checked_add(self.used as u64)
            .and_then(|begin| begin.checked_next_multiple_of(Self::ALIGN as u64));
        let used = begin.and_then(|begin| ((begin - address) as usize).checked_add(bytes));
        let (Some(begin), Some(used)) = (begin, used.filter(|&used| used <= available)) else {
            return Err(Error::Scratch { found: available });
        };
        self.used = used;
        let storage = Storage::External(External { address: begin, bytes, ..self.memory });
        Ok(Tensor { dtype, shape: shape.into(), strides: dense_strides(shape), storage })
    }
}

impl External {
    pub(super) fn download(self) -> Result<Vec<u8>, Error> {
        // SAFETY: whoever made the tensor promised that its elements are memory of this GPU.
        Ok(unsafe { self.device()?.download_address(self.address, self.bytes) }?)
    }

    pub(super) fn device(self) -> Result<CudaDevice, DeviceError> {
        CudaDevice::new(self.ordinal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(address: u64, shape: &[usize], strides: &[usize]) -> Tensor {
        // SAFETY: nothing looks at the elements.
        unsafe { Tensor::from_device_pointer(0, address, DType::Bf16, shape, strides) }.unwrap()
    }

    #[test]
    fn dense_is_without_gaps_in_any_order() {
        for (shape, strides, dense) in [
            ([2, 3, 4, 8], [96, 32, 8, 1], true),
            ([2, 3, 4, 8], [96, 8, 24, 1], true),
            ([1, 3, 4, 8], [7, 8, 24, 1], true),
            ([2, 0, 4, 8], [1, 1, 1, 1], true),
            ([2, 3, 4, 8], [192, 64, 16, 1], false),
            ([2, 3, 4, 8], [0, 32, 8, 1], false),
            ([2, 3, 4, 8], [96, 32, 8, 2], false),
        ] {
            assert_eq!(view(4096, &shape, &strides).is_dense(), dense, "{shape:?} {strides:?}");
        }
    }

    /// The gaps of a view come with it, whose memory need not be there: said before anything is taken, or a GPU asked for.
    #[test]
    fn what_no_host_holds_is_not_fetched() {
        for (shape, strides) in [([1 << 50, 1], [1, 1]), ([2, 1], [1 << 60, 1])] {
            let far = view(4096, &shape, &strides);
            let error = far.to(&crate::Device::Cpu).unwrap_err();
            assert!(matches!(error, Error::Tensor(TensorError::TooLarge { .. })), "{error}");
        }
    }

    #[test]
    fn an_arena_gives_aligned_parts_that_do_not_overlap() {
        let mut measure = Arena::to_measure();
        let make = |arena: &mut Arena| -> Result<Vec<Tensor>, Error> {
            [(DType::F32, [3, 5, 7]), (DType::U8, [1, 1, 1]), (DType::I32, [2, 100, 3])]
                .iter()
                .map(|(dtype, shape)| arena.tensor(*dtype, shape))
                .collect()
        };
        make(&mut measure).unwrap();
        let needed = measure.needed();
        // SAFETY: nothing looks at the elements.
        let buffer = |address, bytes| unsafe {
            Tensor::from_device_pointer(0, address, DType::U8, &[bytes], &[1]).unwrap()
        };
        for address in [4096, 4097, 4096 + 255] {
            let parts = make(&mut Arena::of(&buffer(address, needed)).unwrap().unwrap()).unwrap();
            for (i, part) in parts.iter().enumerate() {
                let begin = part.device_pointer().unwrap();
                let end = begin + (part.elements() * part.dtype().size()) as u64;
                assert!(begin.is_multiple_of(256) && begin >= address && end <= address + needed as u64);
                assert!(parts[..i].iter().all(|other| !part.overlaps(other)));
            }
        }
        let error = make(&mut Arena::of(&buffer(4097, needed - 256)).unwrap().unwrap()).unwrap_err();
        assert!(error.to_string().contains("scratch_bytes"), "{error}");
    }

    /// One call's at a time, whoever has a clone and wherever in it the other begins.
    #[test]
    fn two_arenas_share_no_memory() {
        let at = |address: u64, bytes: usize| view(address, &[bytes / 2], &[1]);
        // Of addresses that no other test has.
        let scratch = at(0x7700_0000, 4096);
        let arena = Arena::of(&scratch).unwrap();
        for other in [scratch.clone(), at(0x7700_0000 - 512, 514), at(0x7700_0000 + 4094, 512)] {
            let refused = std::thread::scope(|scope| scope.spawn(|| Arena::of(&other).err()).join().unwrap());
            assert!(matches!(refused, Some(Error::ScratchInUse)), "{other:?}: {refused:?}");
        }
        let beside = [at(0x7700_0000 - 512, 512), at(0x7700_0000 + 4096, 512), at(0x7700_0000, 0)];
        let others = beside.each_ref().map(|other| Arena::of(other).unwrap());
        drop(arena);
        assert!(
            Arena::of(&scratch).is_ok() && Arena::of(&scratch).is_ok(),
            "each when the one before is done"
        );
        drop(others);
        assert!(Arena::of(&at(0x7700_0000 - 512, 5120)).is_ok(), "nothing is left claimed");
        assert!(Arena::of(&Tensor::zeros(DType::U8, &[64]).unwrap()).unwrap().is_none(), "none on the CPU");
    }
}
