//! Candidates on the GPU as the tuner sees them: checked on the call's own tensors, timed by CUDA events.

use super::Kernel;
use crate::device::{CudaDevice, DeviceError};
use crate::tune::Bench;
use crate::{DType, Error, Tensor};

/// How far a candidate's outputs may be from those of the first one that ran.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Tolerance {
    /// Not at all.
    Exact,
    /// By this relative Frobenius distance: schedules sum in different orders.
    Close(f64),
    /// In this share of the elements: a row whose mass lands on p within rounding keeps a block more or less.
    Mostly(f64),
}

/// What a launch writes, sharing the storage of its arguments.
pub(crate) struct Outputs<'a> {
    tensors: Vec<(Tensor, Tolerance)>,
    /// Compares a candidate with the oracle on a small case.
    oracle: Option<Oracle<'a>>,
    /// The launch's dimensions, by their names in the declaration: what the model ranks by.
    dims: Vec<(&'static str, i64)>,
}

/// Says what is wrong with a candidate; an error where that cannot be said of any.
type Oracle<'a> = Box<dyn Fn(&Kernel) -> Result<Result<(), String>, Error> + 'a>;

impl<'a> Outputs<'a> {
    pub(crate) fn new(tensors: Vec<Tensor>, tolerance: Tolerance) -> Self {
        let tensors = tensors.into_iter().map(|tensor| (tensor, tolerance)).collect();
        Outputs { tensors, oracle: None, dims: Vec::new() }
    }

    /// The same and one more, with a tolerance of its own.
    pub(crate) fn and(mut self, tensor: Tensor, tolerance: Tolerance) -> Self {
        self.tensors.push((tensor, tolerance));
        self
    }

    /// The same for a launch of these dimensions.
    pub(crate) fn sized(self, dims: &[(&'static str, usize)]) -> Self {
        let dims = dims.iter().map(|&(name, extent)| (name, i64::try_from(extent).unwrap_or(i64::MAX)));
        Outputs { dims: dims.collect(), ..self }
    }

    pub(super) fn dims(&self) -> &[(&'static str, i64)] {
        &self.dims
    }

    /// The same with a check of each candidate on a small case of its own.
    pub(crate) fn with_oracle(
        self,
        oracle: impl Fn(&Kernel) -> Result<Result<(), String>, Error> + 'a,
    ) -> Self {
        Outputs { oracle: Some(Box::new(oracle)), ..self }
    }

    /// Whether the bytes of an element are all `poison`.
    fn has(&self, poison: u8) -> Result<bool, Error> {
        let (word, half) = (u32::from_ne_bytes([poison; 4]), u16::from_ne_bytes([poison; 2]));
        for (tensor, _) in &self.tensors {
            let left = match tensor.dtype() {
                DType::F32 => tensor.to_vec::<f32>()?.iter().any(|x| x.to_bits() == word),
                DType::I32 => tensor.to_vec::<i32>()?.contains(&word.cast_signed()),
                DType::U8 => tensor.to_vec::<u8>()?.contains(&poison),
                DType::F16 => tensor.to_vec::<half::f16>()?.iter().any(|x| x.to_bits() == half),
                DType::Bf16 => tensor.to_vec::<half::bf16>()?.iter().any(|x| x.to_bits() == half),
                _ => false,
            };
            if left {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The elements of every output.
    fn read(&self) -> Result<Vec<Vec<f32>>, Error> {
        self.tensors
            .iter()
            .map(|(tensor, _)| match tensor.dtype() {
                DType::I32 => Ok(tensor.to_vec::<i32>()?.into_iter().map(|x| x as f32).collect()),
                DType::U8 => Ok(tensor.to_vec::<u8>()?.into_iter().map(f32::from).collect()),
                _ => tensor.to_f32_vec(),
            })
            .collect()
    }

    fn agree(&self, found: &[Vec<f32>], first: &[Vec<f32>]) -> Result<(), String> {
        for ((found, first), &(_, tolerance)) in found.iter().zip(first).zip(&self.tensors) {
            let distance = match tolerance {
                Tolerance::Close(_) => relative_distance(found, first),
                _ => different_share(found, first),
            };
            let bound = match tolerance {
                Tolerance::Exact => 0.0,
                Tolerance::Close(bound) | Tolerance::Mostly(bound) => bound,
            };
            // Written so that a NaN fails.
            let agrees = distance <= bound;
            if !agrees {
                return Err(format!(
                    "its output is off by {distance:.1e} from the first candidate's (bound {bound:.0e})"
                ));
            }
        }
        Ok(())
    }
}

/// ‖a − b‖ / ‖b‖ over the elements that are numbers in both; elements that are not must be alike.
fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    let (mut apart, mut norm) = (0f64, 0f64);
    for (&a, &b) in a.iter().zip(b) {
        if a.is_finite() && b.is_finite() {
            apart += f64::from(a - b).powi(2);
            norm += f64::from(b).powi(2);
        } else if a != b && !(a.is_nan() && b.is_nan()) {
            return f64::NAN;
        }
    }
    if apart == 0.0 { 0.0 } else { (apart / norm).sqrt() }
}

fn different_share(a: &[f32], b: &[f32]) -> f64 {
    let different = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    different as f64 / a.len().max(1) as f64
}

/// The candidates of one race.
pub(super) struct Trial<'a> {
    device: &'a CudaDevice,
    kernels: &'a [Kernel],
    launch: &'a mut dyn FnMut(&Kernel) -> Result<(), Error>,
    outputs: &'a Outputs<'a>,
    first: Option<Vec<Vec<f32>>>,
    /// Why no candidate can be checked.
    unchecked: Option<Error>,
}

impl<'a> Trial<'a> {
    pub(super) fn new(
        device: &'a CudaDevice,
        kernels: &'a [Kernel],
        launch: &'a mut dyn FnMut(&Kernel) -> Result<(), Error>,
        outputs: &'a Outputs<'a>,
    ) -> Self {
        Trial { device, kernels, launch, outputs, first: None, unchecked: None }
    }

    /// Why no candidate could be checked, where that is so: it is the call's error, and says nothing about the candidates.
    pub(super) fn unchecked(self) -> Option<Error> {
        self.unchecked
    }

    /// Launches a candidate over outputs whose bytes are all `poison`: what it does not write must not look right because the
    /// one before wrote it.
    fn launch_over(&mut self, poison: u8, i: usize) -> Result<(), Error> {
        for (tensor, _) in &self.outputs.tensors {
            tensor.set_bytes(self.device, poison)?;
        }
        (self.launch)(&self.kernels[i])?;
        Ok(self.device.synchronize()?)
    }

    /// The outputs of a candidate, and whether it wrote all of them.
    fn outputs_of(&mut self, i: usize) -> Result<(Vec<Vec<f32>>, bool), Error> {
        self.launch_over(NOTHING, i)?;
        let found = self.outputs.read()?;
        let mut whole = !self.outputs.has(NOTHING)?;
        if !whole {
            // Bits of blocks may all be set: what was not written is another poison the next time.
            self.launch_over(UNLIKELY, i)?;
            whole = !self.outputs.has(UNLIKELY)?;
        }
        Ok((found, whole))
    }
}

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
        if let Some(error) = &self.unchecked {
            return Err(error.to_string());
        }
        if let Some(oracle) = &self.outputs.oracle {
            match oracle(&self.kernels[i]) {
                Ok(verdict) => verdict?,
                Err(error) => {
                    let reason = error.to_string();
                    self.unchecked = Some(error);
                    return Err(reason);
                }
            }
        }
        let (found, whole) = self.outputs_of(i).map_err(|error| error.to_string())?;
        if !whole {
            return Err("it leaves elements of its output unwritten".to_owned());
        }
        match &self.first {
            Some(first) => self.outputs.agree(&found, first),
            None => {
                self.first = Some(found);
                Ok(())
            }
        }
    }

    fn time_us(&mut self, i: usize, launches: u32) -> Result<f64, String> {
        let (mut failure, kernel) = (None, &self.kernels[i]);
        let launch = &mut self.launch;
        let ms = self.device.time_ms(|_| {
            for _ in 0..launches {
                if let Err(error) = launch(kernel) {
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

    #[test]
    fn each_output_goes_by_its_own_tolerance() {
        let tensor = || Tensor::from_slice(&[1.0f32, 1.0], &[2]).unwrap();
        let outputs =
            Outputs::new(vec![tensor()], Tolerance::Close(1e-2)).and(tensor(), Tolerance::Close(1e-5));
        let (first, off) = (vec![1.0, 1.0], vec![1.001, 1.001]);
        let agree =
            |found: [&Vec<f32>; 2]| outputs.agree(&found.map(Vec::clone), &[first.clone(), first.clone()]);
        assert_eq!(agree([&off, &first]), Ok(()));
        let refused = agree([&first, &off]).unwrap_err();
        assert!(refused.contains("off by 1.0e-3") && refused.contains("bound 1e-5"), "{refused}");
    }
}
