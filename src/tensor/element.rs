//! Rust types that tensors hold.

use crate::DType;
use half::{bf16, f16};

mod sealed {
    /// Nobody else's types are elements: kernels go by the dtype's size, and so must the memory.
    pub trait Sealed {}
}

/// A Rust type that can be an element of a [`Tensor`](crate::Tensor): `f16`, `bf16`, `f32`, `i32` and `u8`.
///
/// ```compile_fail,E0277
/// #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
/// #[repr(transparent)]
/// struct Tiny(u8);
/// // One byte that says it is four.
/// impl tilewright::tensor::Element for Tiny {
///     const DTYPE: tilewright::DType = tilewright::DType::F32;
/// }
/// ```
pub trait Element: sealed::Sealed + bytemuck::Pod + Send + Sync + PartialEq + std::fmt::Debug {
    /// The matching element type.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($element:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $element {}
        impl Element for $element {
            const DTYPE: DType = DType::$dtype;
        }
        const _: () = assert!(size_of::<$element>() == DType::$dtype.size());
    )*};
}

elements!(f16 => F16, bf16 => Bf16, f32 => F32, i32 => I32, u8 => U8);

/// A half-precision element: what `q`, `k`, `v` and `out` consist of.
pub(crate) trait Half: Element {
    /// Widens exactly.
    fn widen(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn narrow(value: f32) -> Self;
    /// Widens a run; the implementations use the CPU's conversion instructions where there are any.
    fn widen_slice(from: &[Self], to: &mut [f32]);
    /// Rounds a run to nearest, ties to even.
    fn narrow_slice(from: &[f32], to: &mut [Self]);
}

impl Half for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> Self {
        f16::from_f32(value)
    }
    fn widen_slice(from: &[Self], to: &mut [f32]) {
        use half::slice::HalfFloatSliceExt;
        from.convert_to_f32_slice(to);
    }
    fn narrow_slice(from: &[f32], to: &mut [Self]) {
        use half::slice::HalfFloatSliceExt;
        to.convert_from_f32_slice(from);
    }
}

impl Half for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn widen_slice(from: &[Self], to: &mut [f32]) {
        // A shift per element vectorises; half's generic path keeps NaN payloads through a branch.
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }
    fn narrow_slice(from: &[f32], to: &mut [Self]) {
        use half::slice::HalfFloatSliceExt;
        to.convert_from_f32_slice(from);
    }
}
