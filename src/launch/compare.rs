//! Results of two launches, element by element, on the host.
//!
//! A result can have hundreds of millions of elements, and there is one for every candidate: loops over them use all cores.

use crate::tensor::Element;
use crate::{DType, Device, Error, Tensor, parallel};
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements of a task. Sums are added up task by task, in order, so that they do not depend on the number of threads.
const AT_ONCE: usize = 1 << 18;

/// The elements that a launch left in a tensor, copied from the GPU.
#[derive(Debug)]
pub(super) struct Held {
    dtype: DType,
    /// In row-major order.
    bytes: Vec<u8>,
}

impl Held {
    pub(super) fn of(tensor: &Tensor) -> Result<Self, Error> {
        fn bytes<E: Element>(tensor: &Tensor) -> Result<Vec<u8>, Error> {
            match tensor.is_contiguous() {
                true => Ok(bytemuck::cast_slice(&tensor.host_elements::<E>()?[..tensor.elements()]).to_vec()),
                false => Ok(bytemuck::cast_slice(&tensor.to_vec::<E>()?).to_vec()),
            }
        }
        let tensor = &tensor.to(&Device::Cpu)?;
        let dtype = tensor.dtype();
        let bytes = match dtype {
            DType::F16 => bytes::<f16>(tensor)?,
            DType::Bf16 => bytes::<bf16>(tensor)?,
            DType::I32 => bytes::<i32>(tensor)?,
            DType::U8 => bytes::<u8>(tensor)?,
            _ => bytes::<f32>(tensor)?,
        };
        Ok(Held { dtype, bytes })
    }

    /// The places of elements whose bytes are all `byte`, ascending.
    pub(super) fn places_of(&self, byte: u8) -> Vec<usize> {
        let of_task = |(task, bytes): (usize, &[u8])| -> Vec<usize> {
            let elements = bytes.chunks_exact(self.dtype.size()).enumerate();
            let found = elements.filter(|(_, element)| element.iter().all(|found| *found == byte));
            found.map(|(at, _)| task * AT_ONCE + at).collect()
        };
        parallel::run(|| self.tasks().enumerate().flat_map_iter(of_task).collect())
    }

    /// Whether all bytes of the element at this place are `byte`.
    pub(super) fn is(&self, place: usize, byte: u8) -> bool {
        self.bytes
            .chunks_exact(self.dtype.size())
            .nth(place)
            .is_some_and(|element| element.iter().all(|found| *found == byte))
    }

    /// Whether every byte is 0.
    pub(super) fn is_zero(&self) -> bool {
        self.bytes.iter().all(|byte| *byte == 0)
    }

    /// ‖self − other‖ / ‖other‖ over the elements that are numbers in both; elements that are not must be alike, and there must be as
    /// many of both: NaN otherwise.
    pub(super) fn relative_distance(&self, other: &Held) -> f64 {
        if self.bytes == other.bytes {
            return 0.0;
        }
        match self.dtype {
            DType::F16 => self.distance(other, |x: f16| x.to_f64()),
            DType::Bf16 => self.distance(other, |x: bf16| x.to_f64()),
            DType::I32 => self.distance(other, |x: i32| x.into()),
            DType::U8 => self.distance(other, |x: u8| x.into()),
            _ => self.distance(other, |x: f32| x.into()),
        }
    }

    fn distance<E: Element>(&self, other: &Held, number: impl Fn(E) -> f64 + Sync) -> f64 {
        let of_task = |(a, b): (&[u8], &[u8])| -> (f64, f64) {
            let numbers = |bytes: &[u8]| -> E { bytemuck::pod_read_unaligned(bytes) };
            let size = size_of::<E>();
            let (mut apart, mut norm) = (0.0, 0.0);
            for (a, b) in a.chunks_exact(size).zip(b.chunks_exact(size)) {
                let (a, b) = (number(numbers(a)), number(numbers(b)));
                if a.is_finite() && b.is_finite() {
                    apart += (a - b) * (a - b);
                    norm += b * b;
                } else if a != b && !(a.is_nan() && b.is_nan()) {
                    apart = f64::NAN;
                }
            }
            (apart, norm)
        };
        if self.bytes.len() != other.bytes.len() {
            return f64::NAN;
        }
        let sums: Vec<(f64, f64)> = parallel::run(|| self.tasks().zip(other.tasks()).map(of_task).collect());
        let (apart, norm) = sums.iter().fold((0.0, 0.0), |(a, b), (apart, norm)| (a + apart, b + norm));
        if apart == 0.0 { 0.0 } else { (apart / norm).sqrt() }
    }

    /// The share of elements whose bits differ; all where there are not as many of both.
    pub(super) fn different_share(&self, other: &Held) -> f64 {
        if self.bytes == other.bytes {
            return 0.0;
        }
        let size = self.dtype.size();
        if self.bytes.len() != other.bytes.len() {
            return 1.0;
        }
        let of_task = |(a, b): (&[u8], &[u8])| -> usize {
            a.chunks_exact(size).zip(b.chunks_exact(size)).filter(|(a, b)| a != b).count()
        };
        let different: usize = parallel::run(|| self.tasks().zip(other.tasks()).map(of_task).sum());
        different as f64 / (self.bytes.len() / size) as f64
    }

    fn tasks(&self) -> impl IndexedParallelIterator<Item = &[u8]> {
        self.bytes.par_chunks(AT_ONCE * self.dtype.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held<E: Element>(elements: &[E]) -> Held {
        Held::of(&Tensor::from_slice(elements, &[elements.len()]).unwrap()).unwrap()
    }

    /// More than one task, with what is to be found in the last.
    const MANY: usize = 2 * AT_ONCE + 17;

    #[test]
    fn places_are_counted_over_all_tasks() {
        let mut elements = vec![0.5f32; MANY];
        for place in [3, AT_ONCE, MANY - 1] {
            elements[place] = f32::from_bits(0xA5A5_A5A5);
        }
        let found = held(&elements);
        assert_eq!(found.places_of(0xA5), [3, AT_ONCE, MANY - 1]);
        assert!(found.places_of(0xFF).is_empty());
        assert!(found.is(AT_ONCE, 0xA5) && !found.is(4, 0xA5) && !found.is(MANY, 0xA5));
        // A byte of an element is no element.
        assert!(held(&[0x00A5_A5A5i32]).places_of(0xA5).is_empty());
    }

    #[test]
    fn distances_are_relative_to_the_other() {
        let ones = |last: f32| {
            let mut elements = vec![bf16::ONE; MANY];
            elements[MANY - 1] = bf16::from_f32(last);
            held(&elements)
        };
        let (one, two) = (ones(1.0), ones(2.0));
        assert_eq!(one.relative_distance(&ones(1.0)), 0.0);
        let expected = 1.0 / (MANY as f64).sqrt();
        assert!((two.relative_distance(&one) - expected).abs() < 1e-12);
        assert_eq!(two.different_share(&one), 1.0 / MANY as f64);
        // NaN and infinities must be alike.
        assert!(ones(f32::NAN).relative_distance(&one).is_nan());
        assert_eq!(ones(f32::NAN).relative_distance(&ones(f32::NAN)), 0.0);
        assert!(ones(f32::INFINITY).relative_distance(&ones(f32::NEG_INFINITY)).is_nan());
        assert!(one.relative_distance(&held(&[bf16::ONE])).is_nan());
        assert_eq!(one.different_share(&held(&[bf16::ONE])), 1.0);
    }

    #[test]
    fn elements_are_numbers_of_their_dtype() {
        assert_eq!(held(&[3i32, -7]).relative_distance(&held(&[3, -4])), 0.6);
        assert_eq!(held(&[3u8]).relative_distance(&held(&[6u8])), 0.5);
        assert_eq!(held(&[1.5f32]).relative_distance(&held(&[1.0f32])), 0.5);
        assert_eq!(held(&[f16::from_f32(1.5)]).relative_distance(&held(&[f16::ONE])), 0.5);
        assert_eq!(held::<f32>(&[]).relative_distance(&held::<f32>(&[])), 0.0);
        assert!(held(&[0i32; 3]).is_zero() && !held(&[0i32, 1]).is_zero());
    }

    /// Strides of a view are no part of what it holds.
    #[test]
    fn a_view_is_read_in_order() {
        let view = Tensor::from_slice(&[1i32, 2, 3, 4, 5, 6], &[2, 3]).unwrap().permute(&[1, 0]).unwrap();
        assert_eq!(Held::of(&view).unwrap().different_share(&held(&[1i32, 4, 2, 5, 3, 6])), 0.0);
    }
}
