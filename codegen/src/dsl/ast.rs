//! The declaration as data.

use super::{Access, Expr, Tolerance};
use crate::arch::{Arch, Family};
use crate::dtype::DType;
use crate::lower::FunctionKind;
use crate::value::Value;
use std::collections::HashSet;

/// A kernel: its arguments, what it is specialised over and how each architecture family runs it.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The function's name; also the folder's.
    pub name: String,
    /// The blake3 hash of the file's text and of what it includes, in hex: what tells two kernels of one name apart.
    pub declaration: String,
    /// The paths of the shared declarations that it includes.
    pub includes: Vec<String>,
    /// The doc comment.
    pub doc: String,
    /// Arguments in order.
    pub args: Vec<Arg>,
    /// Constants that are numbers, in order: of the CUDA source and of the bindings.
    pub constants: Vec<Constant>,
    /// Specialisation parameters in order.
    pub specialize: Vec<SpecParam>,
    /// The values whose sources are shipped; a parameter not named ships its first value.
    pub ship: Vec<SpecParam>,
    /// Device functions the kernel calls.
    pub functions: Vec<FunctionSlot>,
    /// Dimensions computed from others.
    pub derived: Vec<Derived>,
    /// What must hold at a launch.
    pub requires: Vec<Require>,
    /// One body for each architecture family.
    pub bodies: Vec<Body>,
}

/// One argument.
#[derive(Debug, Clone)]
pub struct Arg {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ArgKind,
}

/// A tensor or a scalar.
#[derive(Debug, Clone)]
pub enum ArgKind {
    /// A strided tensor with unit stride on its last dimension.
    Tensor {
        /// The element type.
        element: ElementType,
        /// Named dimensions.
        dims: Vec<DimRef>,
        /// What the kernel does with it.
        access: Access,
        /// How far two schedules may be apart in it, where it is a result.
        tolerance: Tolerance,
        /// Whether it may be absent (a null pointer).
        optional: bool,
        /// `#[align(n)]`: bytes the pointer and every stride are a multiple of; the element's size when not given.
        align: usize,
    },
    /// A number passed by value.
    Scalar(ScalarType),
}

/// The element type of a tensor argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElementType {
    /// Always this type.
    Fixed(DType),
    /// The value of a specialisation parameter.
    Param(String),
}

/// A dimension of a tensor argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DimRef {
    /// The dimension's name.
    pub name: String,
    /// `name | 1`: an extent of 1 is repeated (stride 0).
    pub broadcast: bool,
}

/// The type of a scalar argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalarType {
    /// `f32` / `float`.
    F32,
    /// `i32` / `int`.
    I32,
}

/// `const NAME = expr;`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constant {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: i64,
}

/// A specialisation parameter: a variant is made for a value of it.
#[derive(Debug, Clone)]
pub struct SpecParam {
    /// Its name, also the name of the C++ constant or type.
    pub name: String,
    /// The values allowed.
    pub values: SpecValues,
    /// `D_V: [64, 128] = D`: its value where none is given, of the integer parameters above it.
    pub default: Option<Expr>,
}

/// Values of a specialisation parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpecValues {
    /// Element types.
    DTypes(Vec<DType>),
    /// Integers.
    Ints(Vec<i64>),
}

impl SpecValues {
    /// The values in order.
    pub(crate) fn all(&self) -> Vec<Value> {
        match self {
            SpecValues::DTypes(all) => all.iter().map(|&dtype| dtype.into()).collect(),
            SpecValues::Ints(all) => all.iter().map(|&int| int.into()).collect(),
        }
    }

    /// The values for a message: `64, 128`.
    pub(crate) fn list(&self) -> String {
        self.all().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// A device function the body calls as `f.<name>(…)`: `name: ScoreMod` or `name: MaskMod` of `functions`.
#[derive(Debug, Clone)]
pub struct FunctionSlot {
    /// The member's name.
    pub name: String,
    /// What kind of function fits.
    pub kind: FunctionKind,
    /// `name: ScoreMod + Gradient`: the body also calls `f.<name>.gradient(…)`, the derivative by the score of
    /// `f.<name>(…)`, with the same arguments. It is 1 where the slot is empty.
    pub gradient: bool,
}

/// `let name = expr;`
#[derive(Debug, Clone)]
pub struct Derived {
    /// The dimension's name.
    pub name: String,
    /// Its value.
    pub value: Expr,
}

/// `require expr, "message";` One over specialisation parameters alone says which of their values go together.
#[derive(Debug, Clone)]
pub struct Require {
    /// What must be true.
    pub condition: Expr,
    /// What to do when it is not.
    pub message: String,
}

/// How one architecture family runs the kernel.
#[derive(Debug, Clone)]
pub struct Body {
    /// The family; the template is `<kernel>/<family>.cu`.
    pub family: Family,
    /// The tuning space, values in order of preference.
    pub tune: Vec<TuneParam>,
    /// Other values of some of its parameters on some architectures.
    pub tune_on: Vec<TuneOn>,
    /// What a schedule must satisfy.
    pub constraints: Vec<Constraint>,
    /// Dynamic shared memory in bytes; none given means 0.
    pub smem_bytes: Expr,
    /// Estimated registers a thread; none given means no estimate (0).
    pub registers: Expr,
    /// Candidates with a larger value come first; those with the same keep the order of their tuning values. It can
    /// use `CTAS_PER_SM`, the blocks that fit a multiprocessor at once, and `GRID_PER_SM`, the blocks that the grid has for
    /// each multiprocessor (very many where the grid is not known).
    pub prefer: Option<Expr>,
    /// Optional arguments that this body has a use for, each with the launches for which it pays to make one.
    pub worth: Vec<Worth>,
    /// Tensors that the copy engine reads, each with the box of one copy.
    pub tensor_maps: Vec<TensorMap>,
    /// The launch.
    pub launch: Launch,
}

/// `tensor: [rows, columns]` of `tensor_maps`: the body copies boxes of the last two dimensions by the copy engine (TMA).
/// Rows of 128, 64 or 32 bytes are swizzled over as many bytes.
#[derive(Debug, Clone)]
pub struct TensorMap {
    /// The tensor argument.
    pub arg: String,
    /// Rows and columns of a box.
    pub rows_columns: [Expr; 2],
}

/// `tensor: condition` of `worth`: whoever may leave the tensor away makes it where the condition holds.
#[derive(Debug, Clone)]
pub struct Worth {
    /// The optional tensor.
    pub arg: String,
    /// Over the dimensions, the integers of the spec and `SM_COUNT`, the GPU's multiprocessors.
    pub condition: Expr,
}

/// A tuning parameter.
#[derive(Debug, Clone)]
pub struct TuneParam {
    /// Its name, also the name of the C++ constant.
    pub name: String,
    /// Its values, the preferred first.
    pub values: Vec<i64>,
}

/// `tune on sm_86, sm_89 { … }`
#[derive(Debug, Clone)]
pub struct TuneOn {
    /// The architectures.
    pub archs: Vec<Arch>,
    /// Parameters of `tune` with the values that they have there instead.
    pub tune: Vec<TuneParam>,
}

impl Body {
    /// The tuning space on an architecture.
    pub fn tune_for(&self, arch: Arch) -> impl Iterator<Item = &TuneParam> + Clone {
        let there = self.tune_on.iter().filter(move |on| on.archs.contains(&arch));
        self.tune.iter().map(move |param| {
            let mut others = there.clone().flat_map(|on| &on.tune);
            others.find(|other| other.name == param.name).unwrap_or(param)
        })
    }
}

/// A condition of `where`.
#[derive(Debug, Clone)]
pub struct Constraint {
    /// What must be true.
    pub condition: Expr,
}

/// Grid and block.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Blocks along x, y, z.
    pub grid: [Expr; 3],
    /// Threads a block.
    pub threads: Expr,
    /// The grid counts tiles of work, which as many blocks as the GPU runs at once take in turn.
    pub persistent: bool,
    /// The blocks of a persistent grid take their tiles from a counter in device memory as they finish. The body's last
    /// parameter is a `TileQueue` (`lib/tile_queue.cuh`), which says how.
    pub queue: bool,
}

impl Kernel {
    /// The specialisation parameter of that name.
    pub fn spec_param(&self, name: &str) -> Option<&SpecParam> {
        self.specialize.iter().find(|param| param.name == name)
    }

    /// The integer parameters of `specialize`.
    pub(crate) fn ints(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.specialize.iter().filter_map(|param| match &param.values {
            SpecValues::Ints(values) => Some((param.name.as_str(), &values[..])),
            SpecValues::DTypes(_) => None,
        })
    }

    /// Every combination of their values that the requirements admit, in the declaration's order, the last parameter changing
    /// fastest. `None` where there are more than `most` to look at.
    pub(crate) fn int_specs(&self, most: usize) -> Option<Vec<Vec<i64>>> {
        let sizes = self.ints().map(|(_, values)| values.len());
        if sizes.fold(1usize, usize::saturating_mul) > most {
            return None;
        }
        let mut points = vec![Vec::new()];
        for (_, values) in self.ints() {
            let with = |point: &Vec<i64>, value| [&point[..], &[value]].concat();
            points = points.iter().flat_map(|point| values.iter().map(|&value| with(point, value))).collect();
        }
        let names: Vec<&str> = self.ints().map(|(name, _)| name).collect();
        points.retain(|point| {
            let value_of = |name: &str| names.iter().position(|known| *known == name).map(|at| point[at]);
            self.spec_requires().all(|require| require.condition.eval(&value_of) == Ok(1))
        });
        Some(points)
    }

    /// The requirements over specialisation parameters alone: a spec meets them.
    pub(crate) fn spec_requires(&self) -> impl Iterator<Item = &Require> {
        self.requires.iter().filter(|require| self.is_of_specs(require))
    }

    /// The others: a launch meets them.
    pub fn launch_requires(&self) -> impl Iterator<Item = &Require> {
        self.requires.iter().filter(|require| !self.is_of_specs(require))
    }

    fn is_of_specs(&self, require: &Require) -> bool {
        require.condition.names().into_iter().all(|name| self.spec_param(name).is_some())
    }

    /// Names of all dimensions in the order `Params` holds them: first appearance in the arguments, then derived ones.
    pub fn dims(&self) -> Vec<&str> {
        let in_args = self.args.iter().flat_map(|arg| match &arg.kind {
            ArgKind::Tensor { dims, .. } => dims.as_slice(),
            ArgKind::Scalar(_) => &[],
        });
        let mut names: Vec<&str> = in_args
            .map(|dim| dim.name.as_str())
            .chain(self.derived.iter().map(|derived| derived.name.as_str()))
            .collect();
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(*name));
        names
    }
}
