//! Kernels that a program meets when it runs: their declarations are read then, and their arguments go by name. What
//! the generated bindings say of a declaration as Rust is evaluated here, by the same [`Binder`](super::Binder) and
//! with the same errors.

mod args;
mod rule;

pub use args::DynamicArgs;

use super::{BindError, Dim, Request, TensorDecl};
use crate::codegen::dsl::{self, Arg, ArgKind, ElementType, FieldKind, ParamsLayout, ScalarType};
use crate::codegen::{Error, Family, Generator, KernelSource, KernelSpec};
use rule::{Rule, Values};
use std::fmt;

/// A kernel whose declaration was read at run time. What is made of it stays for the life of the process, as kernels
/// that are loaded do: errors and records name parts of it.
#[derive(Clone, Copy)]
pub struct DynamicKernel {
    declared: &'static Declared,
}

struct Declared {
    source: KernelSource,
    kernel: &'static dsl::Kernel,
    /// The tensors among the arguments, in order.
    tensors: Vec<DynamicTensor>,
    /// The scalars among them.
    scalars: Vec<(&'static str, ScalarType)>,
    fields: Vec<Field>,
    params_size: usize,
    /// Dimensions that the declaration does not compute.
    free: Vec<&'static str>,
    derived: Vec<(&'static str, Rule)>,
    requires: Vec<(Rule, &'static str)>,
    bodies: Vec<Body>,
}

/// A tensor argument.
#[derive(Debug)]
pub struct DynamicTensor {
    /// As bindings have it.
    pub decl: TensorDecl,
    /// Whether it may be left out.
    pub optional: bool,
    /// The parameter of the specialisation that is its element type, where its declaration names none.
    param: Option<&'static str>,
    align: usize,
}

/// A member of the struct that the kernel takes by value.
struct Field {
    offset: usize,
    value: FieldValue,
}

/// What a member holds: numbers count the tensors or scalars.
enum FieldValue {
    Pointer(usize),
    Strides(usize),
    Dim(&'static str),
    Scalar(usize),
    Padding,
}

struct Body {
    family: Family,
    /// Each tensor that the copy engine reads, with the rows and columns of a box.
    maps: Vec<(usize, [Rule; 2])>,
    grid: [Rule; 3],
    persistent: bool,
    queue: bool,
}

impl Body {
    fn new(body: &'static dsl::Body, tensors: &[DynamicTensor]) -> Self {
        let map = |map: &'static dsl::TensorMap| {
            let at = tensors.iter().position(|tensor| tensor.decl.name == map.arg);
            Some((at?, map.rows_columns.each_ref().map(Rule::new)))
        };
        Body {
            family: body.family,
            maps: body.tensor_maps.iter().filter_map(map).collect(),
            grid: body.launch.grid.each_ref().map(Rule::new),
            persistent: body.launch.persistent,
            queue: body.launch.queue,
        }
    }
}

impl DynamicTensor {
    fn of(arg: &'static Arg) -> Option<Self> {
        let ArgKind::Tensor { element, dims, access, tolerance, optional, align } = &arg.kind else {
            return None;
        };
        let dim = |dim: &'static dsl::DimRef| match dim.broadcast {
            true => Dim::broadcast(&dim.name),
            false => Dim::exact(&dim.name),
        };
        let (dtype, param) = match element {
            ElementType::Fixed(dtype) => (Some(*dtype), None),
            ElementType::Param(param) => (None, Some(param.as_str())),
        };
        let dims = dims.iter().map(dim).collect::<Vec<_>>().leak();
        let decl = TensorDecl { name: &arg.name, dtype, dims, access: *access, tolerance: *tolerance };
        Some(DynamicTensor { decl, optional: *optional, param, align: *align })
    }

    /// Its element type in a spec.
    pub fn dtype(&self, spec: &KernelSpec) -> Option<crate::DType> {
        self.decl.dtype.or_else(|| spec.dtype(self.param?))
    }
}

impl DynamicKernel {
    /// Reads a kernel's declaration.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn new(source: KernelSource) -> Result<Self, Error> {
        let kernel: &'static dsl::Kernel = Box::leak(Box::new(Generator::new(&source)?.kernel().clone()));
        let tensors: Vec<_> = kernel.args.iter().filter_map(DynamicTensor::of).collect();
        let scalar = |arg: &'static Arg| match arg.kind {
            ArgKind::Scalar(scalar) => Some((arg.name.as_str(), scalar)),
            ArgKind::Tensor { .. } => None,
        };
        let scalars: Vec<_> = kernel.args.iter().filter_map(scalar).collect();
        let derived: Vec<_> =
            kernel.derived.iter().map(|derived| (derived.name.as_str(), Rule::new(&derived.value))).collect();
        let mut free = kernel.dims();
        free.retain(|dim| !derived.iter().any(|(name, _)| name == dim));
        let layout = ParamsLayout::of(kernel);
        let declared = Declared {
            fields: fields(kernel, &layout, &tensors, &scalars),
            params_size: layout.size,
            bodies: kernel.bodies.iter().map(|body| Body::new(body, &tensors)).collect(),
            requires: (kernel.launch_requires())
                .map(|require| (Rule::new(&require.condition), require.message.as_str()))
                .collect(),
            source,
            kernel,
            tensors,
            scalars,
            free,
            derived,
        };
        Ok(DynamicKernel { declared: Box::leak(Box::new(declared)) })
    }

    /// The declaration.
    pub fn kernel(&self) -> &'static dsl::Kernel {
        self.declared.kernel
    }

    /// Its tensors, in order.
    pub fn tensors(&self) -> &'static [DynamicTensor] {
        &self.declared.tensors
    }

    /// The names of its scalars, in order.
    pub fn scalars(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.declared.scalars.iter().map(|(name, _)| *name)
    }

    /// The dimensions whose extents the arguments say; it computes the others.
    pub fn free_dims(&self) -> &'static [&'static str] {
        &self.declared.free
    }

    /// The extents of all dimensions: those given, which are of [`free_dims`](Self::free_dims), and those that the
    /// declaration computes of them. What is not given counts as 0, as where only absent arguments have it.
    ///
    /// # Errors
    /// [`BindError::Arithmetic`] where an expression has no value, [`BindError::Require`] where they do not go with
    /// the declaration.
    pub fn extents(
        &self,
        spec: &KernelSpec,
        given: &[(&'static str, i64)],
    ) -> Result<Vec<(&'static str, i64)>, BindError> {
        let extent = |dim| given.iter().find(|(known, _)| *known == dim).map_or(0, |(_, extent)| *extent);
        let dims = self.declared.free.iter().map(|&dim| (dim, extent(dim))).collect();
        let mut values = Values { kernel: &self.kernel().name, constant: &|name| spec.int(name), dims };
        for (dim, rule) in &self.declared.derived {
            let value = rule.value(&values)?;
            values.dims.push((*dim, value));
        }
        self.declared.expect_met(&values)?;
        Ok(values.dims.into_vec())
    }

    /// The error of a name, with those that there are.
    pub(crate) fn names(
        &self,
        found: String,
        what: &str,
        known: impl Iterator<Item = &'static str>,
    ) -> BindError {
        let known: Vec<&str> = known.collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        BindError::Names { kernel: &self.kernel().name, found, known: format!("{what}: {known}") }
    }

    /// A request for a spec of it.
    pub fn request(&self, spec: &KernelSpec) -> Request {
        let request = Request::new(&self.declared.source);
        let known = |name: &str| self.kernel().spec_param(name).map(|param| param.name.as_str());
        let values = spec.values().iter().filter_map(|(name, value)| Some((known(name)?, *value)));
        values.fold(request, |request, (name, value)| request.value(name, value))
    }
}

impl Declared {
    /// Checks what the declaration requires of a launch.
    fn expect_met(&self, values: &Values<'_>) -> Result<(), BindError> {
        let unmet = |(rule, message): &(Rule, &'static str)| {
            let of = || values.of(rule.expr);
            match rule.eval(values) {
                Some(0) => Some(BindError::unmet(values.kernel, rule.text, &of(), message)),
                Some(_) => None,
                None => Some(BindError::no_value(values.kernel, rule.text, &of())),
            }
        };
        self.requires.iter().find_map(unmet).map_or(Ok(()), Err)
    }
}

impl fmt::Debug for DynamicKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DynamicKernel").field(&self.kernel().name).finish()
    }
}

fn fields(
    kernel: &'static dsl::Kernel,
    layout: &ParamsLayout,
    tensors: &[DynamicTensor],
    scalars: &[(&'static str, ScalarType)],
) -> Vec<Field> {
    let tensor = |name: &str| tensors.iter().position(|tensor| tensor.decl.name == name);
    let dims = kernel.dims();
    let value = |field: &dsl::Field| match &field.kind {
        FieldKind::Pointer { .. } => tensor(&field.name).map(FieldValue::Pointer),
        FieldKind::Strides(_) => tensor(field.name.strip_suffix("_stride")?).map(FieldValue::Strides),
        FieldKind::Dim => dims.iter().find(|dim| **dim == field.name).map(|dim| FieldValue::Dim(dim)),
        FieldKind::Scalar(_) => {
            scalars.iter().position(|(name, _)| *name == field.name).map(FieldValue::Scalar)
        }
        FieldKind::Padding => Some(FieldValue::Padding),
    };
    let field = |field| match value(field) {
        Some(value) => Field { offset: field.offset, value },
        None => unreachable!("the layout is made of the arguments and dimensions"),
    };
    layout.fields.iter().map(field).collect()
}
