//! Candidates on the GPU as the tuner sees them: checked on the call's own tensors, timed by CUDA events.

use super::compare::Held;
use super::results::Results;
use super::{Kernel, TensorArg, Verdict};
use crate::device::{CudaDevice, DeviceError};
use crate::tune::Bench;
use crate::{Error, ErrorKind};

/// The call that a kernel is chosen for.
pub(super) struct Call<'a> {
    /// Its tensors.
    pub(super) tensors: &'a [TensorArg<'a>],
    /// Launches a candidate with the call's arguments.
    pub(super) launch: &'a dyn Fn(&Kernel) -> Result<(), Error>,
    /// Checks a candidate on a small case of its own; absent where the kernel's check.rs cannot be asked.
    pub(super) check: Option<&'a dyn Fn(&Kernel) -> Verdict>,
}

/// The candidates of one race.
pub(super) struct Trial<'a> {
    device: &'a CudaDevice,
    kernels: &'a [Kernel],
    call: &'a Call<'a>,
    results: &'a Results<'a>,
    first: Option<Vec<Held>>,
    /// Why no candidate can be checked.
    unchecked: Option<Error>,
}

impl<'a> Trial<'a> {
    pub(super) fn new(
        device: &'a CudaDevice,
        kernels: &'a [Kernel],
        call: &'a Call<'a>,
        results: &'a Results<'a>,
    ) -> Self {
        Trial { device, kernels, call, results, first: None, unchecked: None }
    }

    /// Why no candidate could be checked, where that is so: it is the call's error, and says nothing about the candidates.
    pub(super) fn unchecked(self) -> Option<Error> {
        self.unchecked
    }

    /// Launches a candidate over results whose bytes are all `poison`: what it does not write must not look right because the
    /// one before wrote it.
    fn launch_over(&self, poison: u8, i: usize) -> Result<Vec<Held>, Error> {
        self.results.poison(poison)?;
        (self.call.launch)(&self.kernels[i])?;
        self.device.synchronize()?;
        self.results.read()
    }

    /// What a candidate writes, and what is wrong with it whatever it should be.
    fn results_of(&self, i: usize) -> Result<(Vec<Held>, Sound), Error> {
        let results = self.results;
        let found = self.launch_over(NOTHING, i)?;
        let counters = results.counters_are_zero()?;
        let doubtful = results.holding(&found, NOTHING);
        if doubtful.iter().all(Vec::is_empty) {
            return Ok((found, counters));
        }
        // Bits of blocks may all be set: what was not written is another poison the next time.
        let again = self.launch_over(UNLIKELY, i)?;
        let unwritten = results.unwritten(&doubtful, &again, UNLIKELY);
        Ok((found, counters.and(unwritten)))
    }

    /// Why a candidate failed; or why none can be checked, which is kept.
    fn failed(&mut self, error: Error) -> String {
        let reason = error.to_string();
        if is_the_calls(&error) {
            self.unchecked = Some(error);
        }
        reason
    }

    fn checked(&mut self, i: usize) -> Result<(), String> {
        if let Some(error) = &self.unchecked {
            return Err(error.to_string());
        }
        match self.call.check.map_or(Ok(Ok(())), |check| check(&self.kernels[i])) {
            Ok(verdict) => verdict?,
            Err(error) => return Err(self.failed(error)),
        }
        let (found, sound) = self.results_of(i).map_err(|error| self.failed(error))?;
        sound?;
        match &self.first {
            Some(first) => self.results.agree(&found, first),
            None => {
                self.first = Some(found);
                Ok(())
            }
        }
    }
}

/// Whether an error says nothing of any candidate: a panic of the user's own function is the user's to know, a call may be to end, and
/// memory may lack that there will be another time.
fn is_the_calls(error: &Error) -> bool {
    matches!(error, Error::DeviceFunction { .. })
        || matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::OutOfMemory)
}

/// What is wrong with a candidate's results, whatever they should be.
type Sound = Result<(), String>;

/// What no computation of numbers makes: a NaN with all bits set, an index of -1, a class of 255.
const NOTHING: u8 = 0xFF;
/// What no bits of blocks are, but by chance.
const UNLIKELY: u8 = 0xA5;

impl Bench for Trial<'_> {
    fn len(&self) -> usize {
        self.kernels.len()
    }

    fn name(&self, i: usize) -> &str {
        &self.kernels[i].variant().fingerprint
    }

    fn check(&mut self, i: usize) -> Result<(), String> {
        let checked = self.checked(i);
        if checked.is_err() {
            // Those that pass are timed over the counters that this one leaves. Where the GPU fails, they do too.
            let _ = self.results.put_back();
        }
        checked
    }

    fn time_us(&mut self, i: usize, launches: u32) -> Result<f64, String> {
        let (mut failure, kernel) = (None, &self.kernels[i]);
        let ms = self.device.time_ms(|_| {
            for _ in 0..launches {
                // What is changed in place is put back each time, for every candidate alike: the next launch is to have the same work.
                let launched = self.results.restore().and_then(|()| (self.call.launch)(kernel));
                if let Err(error) = launched {
                    failure.get_or_insert(error);
                }
            }
            Ok::<(), DeviceError>(())
        });
        match failure {
            Some(error) => Err(error.to_string()),
            None => Ok(1e3 * f64::from(ms.map_err(|error| error.to_string())?) / f64::from(launches)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::BindError;
    use crate::tensor::TensorError;
    use crate::{DType, MaskError};

    /// What would be there in a record for good is what a candidate did.
    #[test]
    fn a_lack_of_memory_is_no_candidates_fault() {
        let panicked = || Error::DeviceFunction { name: "softcap".into(), message: "out of bounds".into() };
        for (error, is) in [
            (Error::Interrupted, true),
            (panicked(), true),
            (TensorError::TooLarge { shape: vec![1 << 60], dtype: DType::F32 }.into(), true),
            (MaskError::TooLarge { shape: [1 << 60; 4] }.into(), true),
            (DeviceError::NoGpu.into(), false),
            (BindError::Grid { kernel: "pool", grid: [0; 3] }.into(), false),
        ] {
            assert_eq!(is_the_calls(&error), is, "{error}");
        }
    }
}
