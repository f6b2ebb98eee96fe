//! Rust types that tensors hold.

use crate::DType;
use half::{bf16, f16};

/// A Rust type that can be an element of a [`Tensor`](crate::Tensor).
pub trait Element: bytemuck::Pod + Send + Sync + PartialEq + std::fmt::Debug {
    /// The matching element type.
    const DTYPE: DType;
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;
}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
impl Element for u8 {
    const DTYPE: DType = DType::U8;
}

/// A half-precision element: what `q`, `k`, `v` and `out` consist of.
pub trait Half: Element {
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
