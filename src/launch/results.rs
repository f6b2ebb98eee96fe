//! What a launch writes, by its declaration: poisoned before a candidate runs, put back where it is changed in place, compared after.

use super::{TensorArg, TensorDecl};
use crate::codegen::dsl::{Access, Tolerance};
use crate::device::CudaDevice;
use crate::tensor::{Element, Saved};
use crate::{DType, Error, Tensor};
use std::cell::Cell;

/// The bits of every element of every result.
pub(super) type Bits = Vec<Vec<u32>>;

/// The tensors that a launch writes.
pub(super) struct Results<'a> {
    device: &'a CudaDevice,
    written: Vec<TensorArg<'a>>,
    /// What is changed in place, as it was before.
    saved: Vec<(&'a Tensor, Saved)>,
    /// Whether a candidate has taken the tensors. Until then they may be what a launch refuses, and share their memory.
    is_bound: Cell<bool>,
}

impl<'a> Results<'a> {
    /// Those of a launch that has not been. What it will change in place is kept aside.
    ///
    /// # Errors
    /// A device error.
    pub(super) fn of(device: &'a CudaDevice, args: &[TensorArg<'a>]) -> Result<Self, Error> {
        // A launch refuses tensors that are elsewhere, and work on their own GPU may be under way.
        let is_here = |arg: &TensorArg<'_>| arg.tensor.ordinal() == Some(device.info().ordinal);
        let written = args.iter().copied().filter(|arg| arg.decl.access.writes() && is_here(arg));
        let written: Vec<_> = written.collect();
        let in_place = written.iter().filter(|arg| arg.decl.access == Access::InOut);
        let saved = in_place.map(|arg| Ok((arg.tensor, arg.tensor.save(device)?)));
        let saved = saved.collect::<Result<_, Error>>()?;
        Ok(Results { device, saved, written, is_bound: Cell::new(false) })
    }

    /// Notes that a candidate has taken the tensors.
    pub(super) fn set_bound(&self) {
        self.is_bound.set(true);
    }

    /// Puts back what is changed in place.
    pub(super) fn restore(&self) -> Result<(), Error> {
        self.saved.iter().try_for_each(|(tensor, saved)| saved.restore(tensor, self.device))
    }

    /// Makes everything as it was before the launch, whatever a candidate has left: counters are 0 then.
    pub(super) fn put_back(&self) -> Result<(), Error> {
        self.restore()?;
        if self.is_bound.get() { self.fill(&[Access::Counters], 0) } else { Ok(()) }
    }

    /// The same, with every byte of what is only written set to `poison`.
    pub(super) fn poison(&self, poison: u8) -> Result<(), Error> {
        self.put_back()?;
        self.fill(&[Access::Out, Access::Scratch], poison)
    }

    fn fill(&self, accesses: &[Access], byte: u8) -> Result<(), Error> {
        let mut filled = self.written.iter().filter(|arg| accesses.contains(&arg.decl.access));
        filled.try_for_each(|arg| arg.tensor.set_bytes(self.device, byte))
    }

    fn results(&self) -> impl Iterator<Item = &TensorArg<'a>> {
        self.written.iter().filter(|arg| is_looked_at(arg.decl))
    }

    /// The bits of every element of every result that is looked at.
    pub(super) fn read(&self) -> Result<Bits, Error> {
        self.results().map(|arg| bits(arg.tensor)).collect()
    }

    /// Of each result that is to be written whole, the places whose bytes are all `poison`.
    pub(super) fn holding(&self, found: &[Vec<u32>], poison: u8) -> Vec<Vec<usize>> {
        let places = |(arg, found): (&TensorArg<'_>, &Vec<u32>)| match arg.decl.access {
            Access::Out => {
                let poison = poisoned(poison, arg.tensor.dtype());
                (0..found.len()).filter(|&i| found[i] == poison).collect()
            }
            _ => Vec::new(),
        };
        self.results().zip(found).map(places).collect()
    }

    /// Whether none of the places held one poison after one launch and the other after the next: elements may be either by chance, but
    /// not both.
    pub(super) fn unwritten(
        &self,
        doubtful: &[Vec<usize>],
        again: &[Vec<u32>],
        poison: u8,
    ) -> Result<(), String> {
        for ((arg, places), found) in self.results().zip(doubtful).zip(again) {
            let poison = poisoned(poison, arg.tensor.dtype());
            if let Some(place) = places.iter().find(|&&place| found[place] == poison) {
                return Err(format!("it leaves element {place} of `{}` unwritten", arg.decl.name));
            }
        }
        Ok(())
    }

    /// Whether every counter is 0.
    pub(super) fn counters_are_zero(&self) -> Result<Result<(), String>, Error> {
        for arg in self.written.iter().filter(|arg| arg.decl.access == Access::Counters) {
            if bits(arg.tensor)?.iter().any(|&count| count != 0) {
                return Ok(Err(format!("it does not leave its counters `{}` at 0", arg.decl.name)));
            }
        }
        Ok(Ok(()))
    }

    /// Whether each result is that of the first candidate, within its tolerance.
    pub(super) fn agree(&self, found: &[Vec<u32>], first: &[Vec<u32>]) -> Result<(), String> {
        let mut all = self.results().zip(found).zip(first);
        all.try_for_each(|((arg, found), first)| agrees(arg.decl, arg.tensor.dtype(), found, first))
    }
}

/// Whether a tensor is read on the host after a launch. What is changed in place and may be anything is not: there is nothing to compare, and
/// no poison in it; and it may be larger than the host's memory, as the scores of a long sequence are.
fn is_looked_at(decl: &TensorDecl) -> bool {
    match decl.access {
        Access::Out => true,
        Access::InOut => decl.tolerance != Tolerance::Any,
        _ => false,
    }
}

/// Whether a result is within the tolerance of its declaration.
fn agrees(decl: &TensorDecl, dtype: DType, found: &[u32], first: &[u32]) -> Result<(), String> {
    let (distance, bound) = match decl.tolerance {
        Tolerance::Any => return Ok(()),
        Tolerance::Close(bound) => (relative_distance(found, first, dtype), bound),
        Tolerance::Share(bound) => (different_share(found, first), bound),
        Tolerance::Exact => (different_share(found, first), 0.0),
    };
    // Written so that a NaN fails.
    if distance <= bound {
        return Ok(());
    }
    Err(format!(
        "its `{}` is off by {distance:.1e} from the first candidate's (bound {bound:.0e})",
        decl.name
    ))
}

/// The bits of every element.
fn bits(tensor: &Tensor) -> Result<Vec<u32>, Error> {
    fn of<E: Element>(tensor: &Tensor, bits: impl Fn(E) -> u32) -> Result<Vec<u32>, Error> {
        Ok(tensor.to_vec::<E>()?.into_iter().map(bits).collect())
    }
    match tensor.dtype() {
        DType::F16 => of(tensor, |x: half::f16| x.to_bits().into()),
        DType::Bf16 => of(tensor, |x: half::bf16| x.to_bits().into()),
        DType::I32 => of(tensor, i32::cast_unsigned),
        DType::U8 => of(tensor, |x: u8| x.into()),
        _ => of(tensor, f32::to_bits),
    }
}

/// The bits of an element whose bytes are all `poison`.
fn poisoned(poison: u8, dtype: DType) -> u32 {
    u32::from_ne_bytes([poison; 4]) >> (32 - 8 * dtype.size())
}

/// The number that bits are.
fn number(bits: u32, dtype: DType) -> f64 {
    match dtype {
        DType::F16 => half::f16::from_bits(bits as u16).to_f64(),
        DType::Bf16 => half::bf16::from_bits(bits as u16).to_f64(),
        DType::F32 => f32::from_bits(bits).into(),
        DType::I32 => bits.cast_signed().into(),
        _ => bits.into(),
    }
}

/// ‖a − b‖ / ‖b‖ over the elements that are numbers in both; elements that are not must be alike.
fn relative_distance(a: &[u32], b: &[u32], dtype: DType) -> f64 {
    let (mut apart, mut norm) = (0f64, 0f64);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (number(a, dtype), number(b, dtype));
        if a.is_finite() && b.is_finite() {
            apart += (a - b).powi(2);
            norm += b.powi(2);
        } else if a != b && !(a.is_nan() && b.is_nan()) {
            return f64::NAN;
        }
    }
    if apart == 0.0 { 0.0 } else { (apart / norm).sqrt() }
}

fn different_share(a: &[u32], b: &[u32]) -> f64 {
    let different = a.iter().zip(b).filter(|(a, b)| a != b).count();
    different as f64 / a.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decl(tolerance: Tolerance) -> TensorDecl {
        TensorDecl { name: "out", dtype: None, dims: &[], access: Access::Out, tolerance }
    }

    /// Of 1, 1, … and of one element that is `last`.
    fn halves(last: f32) -> Vec<u32> {
        let mut bits = vec![u32::from(half::bf16::ONE.to_bits()); 99];
        bits.push(half::bf16::from_f32(last).to_bits().into());
        bits
    }

    #[test]
    fn each_result_goes_by_its_own_tolerance() {
        let (first, near, far) = (halves(1.0), halves(1.0078125), halves(f32::NAN));
        let agrees = |tolerance, found: &[u32]| agrees(&decl(tolerance), DType::Bf16, found, &first);
        for (tolerance, of_near, of_far) in [
            (Tolerance::Exact, false, false),
            (Tolerance::Close(1e-2), true, false),
            (Tolerance::Close(1e-5), false, false),
            (Tolerance::Share(0.01), true, true),
            (Tolerance::Share(0.001), false, false),
            (Tolerance::Any, true, true),
        ] {
            assert_eq!(agrees(tolerance, &first), Ok(()), "{tolerance:?}");
            assert_eq!(agrees(tolerance, &near).is_ok(), of_near, "{tolerance:?}");
            assert_eq!(agrees(tolerance, &far).is_ok(), of_far, "{tolerance:?}");
        }
        let refused = agrees(Tolerance::Close(1e-5), &near).unwrap_err();
        assert!(
            refused.starts_with("its `out` is off by 7.8e-4") && refused.contains("bound 1e-5"),
            "{refused}"
        );
    }

    /// The scores that `select` overwrites stay on the GPU; everything else that a shipped kernel gives is compared or searched for poison.
    #[test]
    fn what_may_be_anything_is_not_fetched() {
        use crate::kernels::{pool, rank, score_partial, select};
        for (decl, looked_at) in [
            (&select::tensors::LOGITS, false),
            (&score_partial::tensors::LOGITS, true),
            (&select::tensors::ROW_ORDER, true),
            (&rank::tensors::FINISHED, false),
            (&pool::tensors::FINISHED, true),
            (&pool::tensors::Q, false),
        ] {
            assert_eq!(is_looked_at(decl), looked_at, "{}", decl.name);
        }
    }

    #[test]
    fn poison_and_numbers_are_read_by_their_dtype() {
        for (dtype, poison, one) in [
            (DType::F32, 0xA5A5_A5A5, 1f32.to_bits()),
            (DType::I32, 0xA5A5_A5A5, 1),
            (DType::Bf16, 0xA5A5, half::bf16::ONE.to_bits().into()),
            (DType::F16, 0xA5A5, half::f16::ONE.to_bits().into()),
            (DType::U8, 0xA5, 1),
        ] {
            assert_eq!((poisoned(0xA5, dtype), number(one, dtype)), (poison, 1.0), "{dtype}");
        }
        assert_eq!(number(-7i32 as u32, DType::I32), -7.0);
    }
}
