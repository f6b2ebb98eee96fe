//! The layout of a kernel's `Params`, the one struct it takes by value. Rust and CUDA are both written from it.

use super::{ArgKind, ElementType, Kernel, ScalarType};

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) kind: FieldKind,
    pub(crate) offset: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FieldKind {
    /// A device pointer.
    Pointer { element: ElementType, mutable: bool },
    /// Strides of all dimensions but the last, in elements, 64 bits each.
    Strides(usize),
    /// A dimension, 32 bits.
    Dim,
    /// A scalar argument, 32 bits.
    Scalar(ScalarType),
    /// Fills the struct up to its alignment: its bytes are read as they are, so none may be undefined.
    Padding,
}

/// All members in order. Everything of 8 bytes comes first, so that there is no padding inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParamsLayout {
    pub(crate) fields: Vec<Field>,
    pub(crate) size: usize,
}

impl ParamsLayout {
    pub(crate) fn of(kernel: &Kernel) -> Self {
        let mut fields = Vec::new();
        let mut offset = 0;
        let mut push = |name: String, kind: FieldKind| {
            let size = match kind {
                FieldKind::Pointer { .. } => 8,
                FieldKind::Strides(count) => 8 * count,
                FieldKind::Dim | FieldKind::Scalar(_) | FieldKind::Padding => 4,
            };
            fields.push(Field { name, kind, offset });
            offset += size;
        };
        for arg in &kernel.args {
            if let ArgKind::Tensor { element, dims, access, .. } = &arg.kind {
                let kind = FieldKind::Pointer { element: element.clone(), mutable: access.writes() };
                push(arg.name.clone(), kind);
                if dims.len() > 1 {
                    push(format!("{}_stride", arg.name), FieldKind::Strides(dims.len() - 1));
                }
            }
        }
        for dim in kernel.dims() {
            push(dim.to_owned(), FieldKind::Dim);
        }
        for arg in &kernel.args {
            if let ArgKind::Scalar(scalar) = arg.kind {
                push(arg.name.clone(), FieldKind::Scalar(scalar));
            }
        }
        if !offset.is_multiple_of(8) {
            fields.push(Field { name: "padding".into(), kind: FieldKind::Padding, offset });
            offset += 4;
        }
        ParamsLayout { fields, size: offset }
    }
}
