//! What a specialisation parameter stands for.

use crate::dtype::DType;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The value of a specialisation parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// An element type.
    DType(DType),
    /// An integer.
    Int(i64),
}

impl From<DType> for Value {
    fn from(dtype: DType) -> Value {
        Value::DType(dtype)
    }
}

impl From<i64> for Value {
    fn from(int: i64) -> Value {
        Value::Int(int)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::DType(dtype) => dtype.fmt(f),
            Value::Int(int) => int.fmt(f),
        }
    }
}
