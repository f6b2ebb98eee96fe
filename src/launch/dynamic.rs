//! Kernels that a program meets when it runs: their declarations are read then, and their arguments go by name. What the generated bindings
//! say of a declaration as Rust is evaluated here, by the same [`Binder`] and with the same errors.

use super::bind::no_value;
use super::declared::bucket;
use super::{BindError, Binder, Bound, Dim, FunctionArgs, Kernel, Request, TensorArg, TensorDecl, Tuned};
use crate::codegen::dsl::{self, Arg, ArgKind, ElementType, Expr, ScalarType};
use crate::codegen::params::{FieldKind, ParamsLayout};
use crate::codegen::{Candidate, Family, Generator, KernelSource, KernelSpec};
use crate::{Error, Tensor, codegen};
use smallvec::SmallVec;
use std::fmt;

/// A kernel whose declaration was read at run time. What is made of it stays for the life of the process, as kernels that are loaded
/// do: errors and records name parts of it.
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

/// An expression of the declaration, and as it is shown.
struct Rule {
    expr: &'static Expr,
    text: &'static str,
}

/// What the names in expressions stand for.
struct Values<'a> {
    kernel: &'static str,
    constant: &'a dyn Fn(&str) -> Option<i64>,
    dims: SmallVec<[(&'static str, i64); 16]>,
}

impl Values<'_> {
    fn get(&self, name: &str) -> Option<i64> {
        let dim = self.dims.iter().find(|(known, _)| *known == name).map(|&(_, value)| value);
        dim.or_else(|| (self.constant)(name))
    }

    /// The values that an error shows.
    fn of(&self, expr: &'static Expr) -> Vec<(&'static str, i64)> {
        expr.names().into_iter().filter_map(|name| Some((name, self.get(name)?))).collect()
    }
}

impl Rule {
    fn new(expr: &'static Expr) -> Self {
        Rule { expr, text: expr.to_string().leak() }
    }

    fn eval(&self, values: &Values<'_>) -> Option<i64> {
        self.expr.eval(&|name| values.get(name)).ok()
    }

    fn value(&self, values: &Values<'_>) -> Result<i64, BindError> {
        self.eval(values).ok_or_else(|| no_value(values.kernel, self.text, &values.of(self.expr)))
    }
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
        let decl =
            TensorDecl { name: &arg.name, dtype, dims, access: *access, tolerance: *tolerance };
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
    pub fn new(source: KernelSource) -> Result<Self, codegen::Error> {
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

    /// The extents of all dimensions: those given, which are of [`free_dims`](Self::free_dims), and those that the declaration computes of
    /// them. What is not given counts as 0, as where only absent arguments have it.
    ///
    /// # Errors
    /// [`BindError::Arithmetic`] where an expression has no value.
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
    let value = |field: &crate::codegen::params::Field| match &field.kind {
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

/// The arguments of a launch, by name. Tensors are shared, not copied: what the kernel writes is seen by every clone of them.
#[derive(Debug)]
pub struct DynamicArgs {
    kernel: DynamicKernel,
    /// One for each tensor of the declaration.
    tensors: Vec<Option<Tensor>>,
    /// The bytes of each scalar.
    scalars: Vec<[u8; 4]>,
}

impl DynamicArgs {
    /// The arguments of these names. A scalar of type `f32` is rounded to it.
    ///
    /// # Errors
    /// [`BindError::Names`] for a name that the declaration does not have or that is given twice, for what is missing, and for a number
    /// that is none of the scalar's.
    pub fn new(
        kernel: DynamicKernel,
        tensors: Vec<(String, Tensor)>,
        scalars: &[(String, f64)],
    ) -> Result<Self, BindError> {
        let declared = kernel.declared;
        let all = || declared.tensors.iter().map(|tensor| tensor.decl.name);
        let wrong = |found| kernel.names(found, "its tensors", all());
        let mut placed: Vec<Option<Tensor>> = declared.tensors.iter().map(|_| None).collect();
        for (name, tensor) in tensors {
            let at = all().position(|known| *known == name);
            let at = at.ok_or_else(|| wrong(format!("there is no tensor `{name}`")))?;
            if placed[at].replace(tensor).is_some() {
                return Err(wrong(format!("the tensor `{name}` is given twice")));
            }
        }
        let missing = declared.tensors.iter().zip(&placed).find(|(decl, given)| !decl.optional && given.is_none());
        if let Some((tensor, _)) = missing {
            return Err(wrong(format!("the tensor `{}` is not given", tensor.decl.name)));
        }
        Ok(DynamicArgs { kernel, tensors: placed, scalars: scalar_bytes(kernel, scalars)? })
    }

    /// Looks whether these scalars are those of a kernel.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn check_scalars(kernel: DynamicKernel, scalars: &[(String, f64)]) -> Result<(), BindError> {
        scalar_bytes(kernel, scalars).map(drop)
    }

    /// The tensors given, in the declaration's order.
    pub fn tensors(&self) -> Vec<TensorArg<'_>> {
        let decls = self.kernel.declared.tensors.iter().map(|tensor| &tensor.decl);
        decls.zip(&self.tensors).map(|(decl, tensor)| (decl, tensor.as_ref())).filter_map(TensorArg::given).collect()
    }

    /// Checks every argument against the declaration and the candidate's specialisation, as bindings do.
    ///
    /// # Errors
    /// Those of [`KernelArgs::bind`](super::KernelArgs::bind).
    pub fn bind(&self, candidate: &Candidate) -> Result<Bound<Vec<u8>>, BindError> {
        let declared = self.kernel.declared;
        let kernel = declared.kernel;
        let mut binder = Binder::new(&kernel.name, &kernel.declaration, candidate)?;
        let mut tensors: SmallVec<[(u64, SmallVec<[i64; 4]>); 16]> = SmallVec::new();
        for (tensor, given) in declared.tensors.iter().zip(&self.tensors) {
            let TensorDecl { name, dtype, dims, access, .. } = tensor.decl;
            let dtype = match (dtype, tensor.param) {
                (None, Some(param)) => binder.dtype(candidate, param)?,
                (Some(dtype), _) => dtype,
                (None, None) => unreachable!("a tensor has an element type"),
            };
            let mut strides = SmallVec::from_elem(0, dims.len() - 1);
            let elements = (dtype, tensor.align);
            let pointer =
                binder.tensor_of(name, given.as_ref(), elements, dims, access.writes(), &mut strides)?;
            tensors.push((pointer, strides));
        }
        let dims = declared.free.iter().map(|&dim| (dim, binder.dim(dim))).collect();
        let mut values = Values { kernel: &kernel.name, constant: &|name| candidate.constant(name), dims };
        for (dim, rule) in &declared.derived {
            let value = rule.value(&values)?;
            values.dims.push((*dim, binder.derive(dim, value, rule.text)?));
        }
        for (rule, message) in &declared.requires {
            let holds = rule.eval(&values).map(|value| value != 0);
            if holds != Some(true) {
                binder.require(rule.text, &values.of(rule.expr), message, || holds)?;
            }
        }
        let family = candidate.schedule.family;
        let body = declared.bodies.iter().find(|body| body.family == family);
        let body = body.ok_or_else(|| binder.no_body(family))?;
        for (at, sides) in &body.maps {
            let (name, given) = (declared.tensors[*at].decl.name, self.tensors[*at].as_ref());
            let [rows, columns] = sides;
            let sides = [rows.value(&values)?, columns.value(&values)?];
            // Only a tensor that is no optional one has a map.
            if let Some(tensor) = given {
                binder.tensor_map(name, tensor, sides)?;
            }
        }
        if body.persistent {
            binder.persistent();
        }
        if body.queue {
            binder.queue();
        }
        let [x, y, z] = &body.grid;
        let grid = [x.value(&values)?, y.value(&values)?, z.value(&values)?];
        let mut params = vec![0; declared.params_size];
        for Field { offset, value } in &declared.fields {
            let mut at = *offset;
            let mut put = |bytes: &[u8]| {
                params[at..at + bytes.len()].copy_from_slice(bytes);
                at += bytes.len();
            };
            match value {
                FieldValue::Pointer(tensor) => put(&tensors[*tensor].0.to_ne_bytes()),
                FieldValue::Strides(tensor) => {
                    tensors[*tensor].1.iter().for_each(|stride| put(&stride.to_ne_bytes()));
                }
                FieldValue::Dim(dim) => {
                    let extent = values.get(dim).unwrap_or_default();
                    put(&binder.int(extent)?.to_ne_bytes());
                }
                FieldValue::Scalar(scalar) => put(&self.scalars[*scalar]),
                FieldValue::Padding => {}
            }
        }
        binder.finish(params, grid)
    }

    /// Checks the arguments and puts the launch on the kernel's stream.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    ///
    /// # Safety
    /// As for [`Kernel::launch`].
    pub unsafe fn launch(&self, kernel: &Kernel, functions: Option<&FunctionArgs>) -> Result<(), Error> {
        let bind = |candidate: &Candidate| self.bind(candidate);
        // SAFETY: `bind` says what the generated one says, by the layout that the CUDA struct is written from: all bytes of the struct,
        // with addresses of tensors that `self` holds. The caller answers for the body.
        unsafe { kernel.launch_bound(&self.kernel.kernel().name, bind, |params| params, functions) }
    }

    /// As [`Tuned::launch`], without device functions: their slots are empty. Schedules are checked against the first alone, for a
    /// `check.rs` is Rust of the crate that the kernel belongs to.
    ///
    /// # Errors
    /// As [`Tuned::launch`].
    ///
    /// # Safety
    /// As for [`Tuned::launch`].
    pub unsafe fn launch_tuned(&self, tuned: &Tuned) -> Result<(), Error> {
        let slots = vec![None; self.kernel.kernel().functions.len()];
        let functions = (!slots.is_empty()).then(|| FunctionArgs::new(&tuned.device, tuned.spec(), &slots));
        let functions = functions.transpose()?;
        // SAFETY: the caller's.
        let launch = |kernel: &Kernel| unsafe { self.launch(kernel, functions.as_ref()) };
        tuned.run(bucket(&self.tensors()), &|| self.tensors(), &launch, &|_| Ok(Ok(())))
    }
}

/// The bytes of every scalar of the declaration.
fn scalar_bytes(kernel: DynamicKernel, given: &[(String, f64)]) -> Result<Vec<[u8; 4]>, BindError> {
    let wrong = |found| kernel.names(found, "its scalars", kernel.scalars());
    if let Some((name, _)) = given.iter().find(|(name, _)| !kernel.scalars().any(|known| known == name)) {
        return Err(wrong(format!("there is no scalar `{name}`")));
    }
    let bytes = |&(name, scalar): &(&'static str, ScalarType)| {
        let mut values = given.iter().filter(|(known, _)| known == name).map(|(_, value)| *value);
        let value = values.next().ok_or_else(|| wrong(format!("the scalar `{name}` is not given")))?;
        if values.next().is_some() {
            return Err(wrong(format!("the scalar `{name}` is given twice")));
        }
        match scalar {
            ScalarType::F32 => Ok((value as f32).to_ne_bytes()),
            ScalarType::I32 if f64::from(value as i32) == value => Ok((value as i32).to_ne_bytes()),
            ScalarType::I32 => {
                Err(wrong(format!("the scalar `{name}` is {value}, needed a whole number of 32 bits")))
            }
        }
    };
    kernel.declared.scalars.iter().map(bytes).collect()
}
