//! Captures: the arguments of a device function after the leading ones, and their bytes in the functor.

use super::ir::Type;

/// The type of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CaptureType {
    /// `f32`.
    F32,
    /// `i32`.
    I32,
    /// `u32`.
    U32,
    /// `bool`.
    Bool,
    /// `&[f32]`.
    F32s,
    /// `&[i32]`.
    I32s,
    /// `&[u32]`.
    U32s,
}

impl CaptureType {
    pub(crate) const NAMES: &'static str = "`f32`, `i32`, `u32`, `bool`, `&[f32]`, `&[i32]` or `&[u32]`";

    /// Whether the capture is a slice: a pointer and a length on the device.
    pub fn is_slice(self) -> bool {
        matches!(self, Self::F32s | Self::I32s | Self::U32s)
    }

    /// The type of the scalar, or of the slice's elements.
    pub fn element(self) -> Type {
        match self {
            Self::F32 | Self::F32s => Type::F32,
            Self::I32 | Self::I32s => Type::I32,
            Self::U32 | Self::U32s => Type::U32,
            Self::Bool => Type::Bool,
        }
    }

    pub(crate) fn scalar(ty: Type) -> Option<Self> {
        Some(match ty {
            Type::F32 => Self::F32,
            Type::I32 => Self::I32,
            Type::U32 => Self::U32,
            Type::Bool => Self::Bool,
            Type::I64 | Type::Usize => return None,
        })
    }

    pub(crate) fn slice(element: Type) -> Option<Self> {
        Some(match element {
            Type::F32 => Self::F32s,
            Type::I32 => Self::I32s,
            Type::U32 => Self::U32s,
            Type::Bool | Type::I64 | Type::Usize => return None,
        })
    }

    /// The type as Rust writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::Bool => "bool",
            Self::F32s => "&[f32]",
            Self::I32s => "&[i32]",
            Self::U32s => "&[u32]",
        }
    }
}

/// A capture's declaration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Capture {
    /// The parameter's name in Rust, without `r#`.
    pub name: String,
    /// Its type.
    pub ty: CaptureType,
}

/// A capture's value, on the host.
#[derive(Clone, Debug, PartialEq)]
pub enum CaptureValue {
    /// An `f32`.
    F32(f32),
    /// An `i32`.
    I32(i32),
    /// A `u32`.
    U32(u32),
    /// A `bool`.
    Bool(bool),
    /// The contents of a `&[f32]`.
    F32s(Vec<f32>),
    /// The contents of a `&[i32]`.
    I32s(Vec<i32>),
    /// The contents of a `&[u32]`.
    U32s(Vec<u32>),
}

impl CaptureValue {
    /// The type of the value.
    pub fn ty(&self) -> CaptureType {
        match self {
            Self::F32(_) => CaptureType::F32,
            Self::I32(_) => CaptureType::I32,
            Self::U32(_) => CaptureType::U32,
            Self::Bool(_) => CaptureType::Bool,
            Self::F32s(_) => CaptureType::F32s,
            Self::I32s(_) => CaptureType::I32s,
            Self::U32s(_) => CaptureType::U32s,
        }
    }

    /// The number of elements of a slice; `None` for a scalar.
    pub fn slice_len(&self) -> Option<usize> {
        match self {
            Self::F32s(values) => Some(values.len()),
            Self::I32s(values) => Some(values.len()),
            Self::U32s(values) => Some(values.len()),
            _ => None,
        }
    }

    /// The bytes that a slice's device buffer holds, or those of the scalar in the functor.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(value) => value.to_le_bytes().to_vec(),
            Self::I32(value) => value.to_le_bytes().to_vec(),
            Self::U32(value) => value.to_le_bytes().to_vec(),
            Self::Bool(value) => vec![u8::from(*value)],
            Self::F32s(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::I32s(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::U32s(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }
}

/// Captures that are not those the function declares.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// Too few or too many.
    #[error(
        "`{function}` has {expected} captures, found {found} values: pass one value for each capture, in order"
    )]
    Count {
        /// The device function.
        function: String,
        /// How many it declares.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// A value of another type.
    #[error(
        "capture `{capture}` of `{function}` is `{expected}`, found `{found}`: pass a value of the declared type"
    )]
    Type {
        /// The device function.
        function: String,
        /// The capture.
        capture: String,
        /// Its declared type.
        expected: &'static str,
        /// The type of the value.
        found: &'static str,
    },
    /// A slice whose length does not fit the functor's `int`.
    #[error(
        "capture `{capture}` of `{function}` has {found} elements: a slice can have at most {}",
        i32::MAX
    )]
    Length {
        /// The device function.
        function: String,
        /// The capture.
        capture: String,
        /// The number of elements.
        found: usize,
    },
    /// Too few or too many device pointers.
    #[error(
        "`{function}` has {expected} slice captures, found {found} device pointers: pass one for each, in order"
    )]
    Pointers {
        /// The device function.
        function: String,
        /// How many slices it declares.
        expected: usize,
        /// How many pointers were given.
        found: usize,
    },
}

/// One field of the functor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// The capture's name; a slice has a second field, `<name>_len`.
    pub name: String,
    /// Offset in bytes.
    pub offset: usize,
    /// Size in bytes, which is also its alignment.
    pub size: usize,
}

/// Where the functor keeps its captures, by C's rules on a 64-bit machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureLayout {
    /// Size in bytes, a multiple of `align`.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// The fields in order. Empty without captures: the functor is then four unused bytes, since C++ has no
    /// objects of size 0.
    pub fields: Vec<FieldLayout>,
}

impl CaptureLayout {
    /// The layout of these captures.
    pub fn of(captures: &[Capture]) -> Self {
        let mut layout = Self { size: 0, align: 1, fields: Vec::new() };
        for capture in captures {
            if capture.ty.is_slice() {
                layout.push(capture.name.clone(), 8);
                layout.push(format!("{}_len", capture.name), 4);
            } else {
                layout.push(capture.name.clone(), if capture.ty == CaptureType::Bool { 1 } else { 4 });
            }
        }
        if layout.fields.is_empty() {
            return Self { size: 4, align: 4, fields: Vec::new() };
        }
        layout.size = layout.size.next_multiple_of(layout.align);
        layout
    }

    fn push(&mut self, name: String, size: usize) {
        let offset = self.size.next_multiple_of(size);
        self.fields.push(FieldLayout { name, offset, size });
        self.size = offset + size;
        self.align = self.align.max(size);
    }
}

/// Checks number and types of `values`.
pub(crate) fn check(
    function: &str,
    captures: &[Capture],
    values: &[CaptureValue],
) -> Result<(), CaptureError> {
    if captures.len() != values.len() {
        return Err(CaptureError::Count {
            function: function.into(),
            expected: captures.len(),
            found: values.len(),
        });
    }
    for (capture, value) in captures.iter().zip(values) {
        if capture.ty != value.ty() {
            return Err(CaptureError::Type {
                function: function.into(),
                capture: capture.name.clone(),
                expected: capture.ty.name(),
                found: value.ty().name(),
            });
        }
        if let Some(found) = value.slice_len().filter(|&len| i32::try_from(len).is_err()) {
            return Err(CaptureError::Length {
                function: function.into(),
                capture: capture.name.clone(),
                found,
            });
        }
    }
    Ok(())
}

/// The functor's bytes; padding is zero, so that equal captures have equal bytes.
pub(crate) fn pack(
    function: &str,
    captures: &[Capture],
    values: &[CaptureValue],
    device_pointers: &[u64],
) -> Result<Vec<u8>, CaptureError> {
    check(function, captures, values)?;
    let expected = captures.iter().filter(|capture| capture.ty.is_slice()).count();
    if device_pointers.len() != expected {
        return Err(CaptureError::Pointers {
            function: function.into(),
            expected,
            found: device_pointers.len(),
        });
    }
    let layout = CaptureLayout::of(captures);
    let mut pointers = device_pointers.iter();
    let contents = values.iter().flat_map(|value| match value.slice_len() {
        Some(len) => {
            let pointer = pointers.next().copied().unwrap_or_default();
            vec![pointer.to_le_bytes().to_vec(), (len as u32).to_le_bytes().to_vec()]
        }
        None => vec![value.to_bytes()],
    });
    let mut bytes = vec![0; layout.size];
    for (field, content) in layout.fields.iter().zip(contents) {
        bytes[field.offset..field.offset + field.size].copy_from_slice(&content);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captures(types: &[CaptureType]) -> Vec<Capture> {
        types.iter().enumerate().map(|(at, &ty)| Capture { name: format!("c{at}"), ty }).collect()
    }

    #[test]
    fn layouts_follow_c() {
        use CaptureType::*;
        let table: &[(&[CaptureType], usize, usize, &[usize])] = &[
            (&[], 4, 4, &[]),
            (&[Bool], 1, 1, &[0]),
            (&[F32], 4, 4, &[0]),
            (&[Bool, F32, Bool], 12, 4, &[0, 4, 8]),
            (&[I32s], 16, 8, &[0, 8]),
            (&[F32, I32s, U32], 24, 8, &[0, 8, 16, 20]),
            (&[I32s, F32s, Bool], 32, 8, &[0, 8, 16, 24, 28]),
        ];
        for (types, size, align, offsets) in table {
            let layout = CaptureLayout::of(&captures(types));
            assert_eq!((layout.size, layout.align), (*size, *align), "{types:?}");
            assert_eq!(
                layout.fields.iter().map(|field| field.offset).collect::<Vec<_>>(),
                *offsets,
                "{types:?}"
            );
        }
    }

    #[test]
    fn packing_puts_values_pointers_and_lengths_at_their_offsets() {
        let captures = captures(&[CaptureType::Bool, CaptureType::I32s, CaptureType::F32]);
        let values = [CaptureValue::Bool(true), CaptureValue::I32s(vec![7; 3]), CaptureValue::F32(1.0)];
        let bytes = pack("f", &captures, &values, &[0x0102]).unwrap();
        let mut expected = [0u8; 24];
        (expected[0], expected[8], expected[9], expected[16]) = (1, 2, 1, 3);
        expected[20..].copy_from_slice(&1.0f32.to_le_bytes());
        assert_eq!(bytes, expected);
        assert_eq!(pack("f", &[], &[], &[]).unwrap(), [0; 4]);
    }

    #[test]
    fn wrong_captures_are_named() {
        let captures = captures(&[CaptureType::F32, CaptureType::I32s]);
        let good = [CaptureValue::F32(1.0), CaptureValue::I32s(vec![])];
        let swapped = [CaptureValue::I32(1), CaptureValue::I32s(vec![])];
        assert!(matches!(pack("f", &captures, &good[..1], &[1]), Err(CaptureError::Count { .. })));
        assert!(matches!(pack("f", &captures, &good, &[]), Err(CaptureError::Pointers { .. })));
        let error = pack("f", &captures, &swapped, &[1]).unwrap_err();
        assert!(error.to_string().contains("capture `c0` of `f` is `f32`, found `i32`"), "{error}");
    }
}
