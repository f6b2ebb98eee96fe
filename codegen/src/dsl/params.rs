//! The layout of a kernel's `Params`, the one struct it takes by value. Rust and CUDA are both written from it.

use super::{ArgKind, ElementType, Kernel, ScalarType};

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its name: that of the argument or the dimension, or `<tensor>_stride`.
    pub name: String,
    /// What it is.
    pub kind: FieldKind,
    /// Bytes from the beginning of the struct.
    pub offset: usize,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldKind {
    /// A device pointer.
    Pointer {
        /// What it points to.
        element: ElementType,
        /// Whether the kernel writes there.
        mutable: bool,
    },
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
pub struct ParamsLayout {
    /// The members.
    pub fields: Vec<Field>,
    /// Bytes of the struct.
    pub size: usize,
}

impl ParamsLayout {
    /// The layout for a declaration.
    pub fn of(kernel: &Kernel) -> Self {
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
