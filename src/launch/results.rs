//! What a launch writes, by its declaration: poisoned before a candidate runs, put back where it is changed in place, compared after.

use super::compare::Held;
use super::{TensorArg, TensorDecl};
use crate::codegen::dsl::{Access, Tolerance};
use crate::device::CudaDevice;
use crate::tensor::Saved;
use crate::{Error, Tensor};
use std::cell::Cell;

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

    /// The elements of every result that is looked at.
    pub(super) fn read(&self) -> Result<Vec<Held>, Error> {
        self.results().map(|arg| Held::of(arg.tensor)).collect()
    }

    /// Of each result that is to be written whole, the places whose bytes are all `poison`.
    pub(super) fn holding(&self, found: &[Held], poison: u8) -> Vec<Vec<usize>> {
        let places = |(arg, found): (&TensorArg<'_>, &Held)| match arg.decl.access {
            Access::Out => found.places_of(poison),
            _ => Vec::new(),
        };
        self.results().zip(found).map(places).collect()
    }

    /// Whether none of the places held one poison after one launch and the other after the next: elements may be either by chance, but
    /// not both.
    pub(super) fn unwritten(
        &self,
        doubtful: &[Vec<usize>],
        again: &[Held],
        poison: u8,
    ) -> Result<(), String> {
        for ((arg, places), found) in self.results().zip(doubtful).zip(again) {
            if let Some(place) = places.iter().find(|&&place| found.is(place, poison)) {
                return Err(format!("it leaves element {place} of `{}` unwritten", arg.decl.name));
            }
        }
        Ok(())
    }

    /// Whether every counter is 0.
    pub(super) fn counters_are_zero(&self) -> Result<Result<(), String>, Error> {
        for arg in self.written.iter().filter(|arg| arg.decl.access == Access::Counters) {
            if !Held::of(arg.tensor)?.is_zero() {
                return Ok(Err(format!("it does not leave its counters `{}` at 0", arg.decl.name)));
            }
        }
        Ok(Ok(()))
    }

    /// Whether each result is that of the first candidate, within its tolerance.
    pub(super) fn agree(&self, found: &[Held], first: &[Held]) -> Result<(), String> {
        let mut all = self.results().zip(found).zip(first);
        all.try_for_each(|((arg, found), first)| agrees(arg.decl, found, first))
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
fn agrees(decl: &TensorDecl, found: &Held, first: &Held) -> Result<(), String> {
    let (distance, bound) = match decl.tolerance {
        Tolerance::Any => return Ok(()),
        Tolerance::Close(bound) => (found.relative_distance(first), bound),
        Tolerance::Share(bound) => (found.different_share(first), bound),
        Tolerance::Exact => (found.different_share(first), 0.0),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn decl(tolerance: Tolerance) -> TensorDecl {
        TensorDecl { name: "out", dtype: None, dims: &[], access: Access::Out, tolerance }
    }

    /// Of 1, 1, … and of one element that is `last`.
    fn halves(last: f32) -> Held {
        let mut elements = vec![half::bf16::ONE; 99];
        elements.push(half::bf16::from_f32(last));
        Held::of(&Tensor::from_slice(&elements, &[100]).unwrap()).unwrap()
    }

    #[test]
    fn each_result_goes_by_its_own_tolerance() {
        let (first, near, far) = (halves(1.0), halves(1.0078125), halves(f32::NAN));
        let agrees = |tolerance, found: &Held| agrees(&decl(tolerance), found, &first);
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

    /// The scores that `select` overwrites and those of which `score_partial` writes a few stay on the GPU; everything else that a
    /// shipped kernel gives is compared or searched for poison.
    #[test]
    fn what_may_be_anything_is_not_fetched() {
        use crate::kernels::{pool, rank, score_partial, select};
        for (decl, looked_at) in [
            (&select::tensors::LOGITS, false),
            (&score_partial::tensors::LOGITS, false),
            (&select::tensors::ROW_ORDER, true),
            (&rank::tensors::FINISHED, false),
            (&pool::tensors::FINISHED, true),
            (&pool::tensors::Q, false),
        ] {
            assert_eq!(is_looked_at(decl), looked_at, "{}", decl.name);
        }
    }
}
