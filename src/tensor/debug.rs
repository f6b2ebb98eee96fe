//! What `{:?}` prints of a tensor: what it is, and of its elements the first.

use super::{Element, Storage, Tensor};
use crate::DType;
use half::{bf16, f16};
use std::fmt;

/// Elements that are printed.
const FIRST: usize = 6;

/// On the CPU with the first elements in row-major order. Those on a GPU are not fetched: that would wait for it.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tensor = f.debug_struct("Tensor");
        tensor
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .field("strides", &self.strides)
            .field("place", &format_args!("{}", self.place()));
        if matches!(self.storage, Storage::Host(_)) {
            tensor.field("elements", &First(self));
        }
        tensor.finish()
    }
}

/// The first elements of a host tensor.
struct First<'a>(&'a Tensor);

impl First<'_> {
    fn list<E: Element + fmt::Debug>(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let First(tensor) = *self;
        let all = tensor.host_elements::<E>().map_err(|_| fmt::Error)?;
        let offset = |mut place: usize| {
            let axes = tensor.shape.iter().zip(&tensor.strides).rev();
            axes.map(|(&extent, &stride)| {
                let index = place % extent;
                place /= extent;
                index * stride
            })
            .sum::<usize>()
        };
        let count = tensor.elements();
        let mut list = f.debug_list();
        list.entries((0..count.min(FIRST)).map(|place| all[offset(place)]));
        if count > FIRST {
            list.entry(&format_args!("… {} more", count - FIRST));
        }
        list.finish()
    }
}

impl fmt::Debug for First<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.dtype {
            DType::F16 => self.list::<f16>(f),
            DType::Bf16 => self.list::<bf16>(f),
            DType::F32 => self.list::<f32>(f),
            DType::I32 => self.list::<i32>(f),
            DType::U8 => self.list::<u8>(f),
            _ => f.write_str("…"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockMask, BlockSize, SeqLens};

    #[test]
    fn a_tensor_shows_what_it_is_and_its_first_elements() {
        let x = Tensor::from_slice(&[1.0f32, 2.5, -3.0, f32::NAN, 5.0, 6.0, 7.0, 8.0], &[2, 4]).unwrap();
        let text = |tensor: &Tensor| format!("{tensor:?}");
        assert_eq!(
            text(&x),
            "Tensor { dtype: F32, shape: [2, 4], strides: [4, 1], place: the CPU, \
             elements: [1.0, 2.5, -3.0, NaN, 5.0, 6.0, … 2 more] }"
        );
        let across = text(&x.permute(&[1, 0]).unwrap());
        assert!(
            across.contains("strides: [1, 4]") && across.contains("[1.0, 5.0, 2.5, 6.0, -3.0, 7.0, …"),
            "{across}"
        );
        let empty = Tensor::zeros(DType::Bf16, &[3, 0]).unwrap();
        assert!(text(&empty).ends_with("elements: [] }"), "{}", text(&empty));
        let bytes = Tensor::from_slice(&[7u8, 8], &[2]).unwrap();
        assert!(text(&bytes).ends_with("elements: [7, 8] }"), "{}", text(&bytes));
        // SAFETY: nothing looks at the elements.
        let there = unsafe { Tensor::from_device_pointer(1, 4096, DType::F16, &[4], &[1]) }.unwrap();
        assert_eq!(text(&there), "Tensor { dtype: F16, shape: [4], strides: [1], place: cuda:1 }");
    }

    #[test]
    fn what_holds_large_tensors_prints_little() {
        let mask = BlockMask::full(2, 8, BlockSize::default(), SeqLens::same(8192)).unwrap();
        let text = format!("{mask:?}");
        assert!(text.len() < 4000, "{} bytes", text.len());
    }
}
