//! Element types of tensors.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DType {
    /// IEEE 754 half precision.
    F16,
    /// bfloat16: the range of `f32` with 8 bits of precision.
    Bf16,
    /// IEEE 754 single precision.
    F32,
    /// 32-bit signed integers.
    I32,
    /// Bytes; block classes are kept in them.
    U8,
}

impl DType {
    /// Every element type, in declaration order.
    pub const ALL: [DType; 5] = [DType::F16, DType::Bf16, DType::F32, DType::I32, DType::U8];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F16 | DType::Bf16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::U8 => 1,
        }
    }

    /// The name used in declarations, variant names and messages: `f16`, `bf16`, `f32`, `i32`, `u8`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
            DType::I32 => "i32",
            DType::U8 => "u8",
        }
    }

    /// The CUDA C++ type of one element.
    pub const fn cuda(self) -> &'static str {
        match self {
            DType::F16 => "__half",
            DType::Bf16 => "__nv_bfloat16",
            DType::F32 => "float",
            DType::I32 => "int",
            DType::U8 => "unsigned char",
        }
    }

    /// The type a declaration's name stands for.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
