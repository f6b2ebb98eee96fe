//! The typed form of a device function: what the checker makes, the printer prints and the interpreter runs.
//!
//! Everything in it is pure and total, so an expression may be evaluated early, late or twice without changing
//! its meaning. The printer counts on that when it lifts the `let`s of a nested block out of an expression.

/// The type of a value inside a device function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// `f32`, CUDA's `float`.
    F32,
    /// `i32`, CUDA's `int`.
    I32,
    /// `u32`, CUDA's `unsigned`.
    U32,
    /// `i64`, CUDA's `long long`.
    I64,
    /// `usize`, always 64 bits wide: CUDA's `unsigned long long`.
    Usize,
    /// `bool`.
    Bool,
}

impl Type {
    /// What error messages list as the types to choose from.
    pub(crate) const NAMES: &'static str = "`f32`, `i32`, `u32`, `i64`, `usize` or `bool`";

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "f32" => Self::F32,
            "i32" => Self::I32,
            "u32" => Self::U32,
            "i64" => Self::I64,
            "usize" => Self::Usize,
            "bool" => Self::Bool,
            _ => return None,
        })
    }

    /// The name in Rust.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I64 => "i64",
            Self::Usize => "usize",
            Self::Bool => "bool",
        }
    }

    /// The name in CUDA.
    pub fn cuda(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::I32 => "int",
            Self::U32 => "unsigned",
            Self::I64 => "long long",
            Self::Usize => "unsigned long long",
            Self::Bool => "bool",
        }
    }

    pub(crate) fn is_int(self) -> bool {
        !matches!(self, Self::F32 | Self::Bool)
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::F32 | Self::I32 | Self::I64)
    }

    /// The smallest and the largest value of an integer type.
    pub(crate) fn int_range(self) -> Option<(i128, i128)> {
        match self {
            Self::I32 => Some((i32::MIN.into(), i32::MAX.into())),
            Self::U32 => Some((0, u32::MAX.into())),
            Self::I64 => Some((i64::MIN.into(), i64::MAX.into())),
            Self::Usize => Some((0, u64::MAX.into())),
            Self::F32 | Self::Bool => None,
        }
    }
}

/// Index of a parameter or of a `let` in [`Body::locals`].
pub(crate) type LocalId = usize;

/// A parameter (not a capture) or a `let`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Local<T = Type> {
    pub(crate) name: String,
    pub(crate) ty: T,
}

/// A whole function; its first locals are its parameters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Body {
    pub(crate) locals: Vec<Local>,
    pub(crate) value: Expr,
}

/// An expression; `T` is [`Type`] once inference is over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expr<T = Type> {
    pub(crate) ty: T,
    pub(crate) kind: ExprKind<T>,
}

/// What an [`Expr`] computes. `Capture`, `Index` and `Len` hold the capture's position.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ExprKind<T = Type> {
    Float(f32),
    Int(i128),
    Bool(bool),
    Local(LocalId),
    Capture(usize),
    Index(usize, Box<Expr<T>>),
    Len(usize),
    Unary(UnaryOp, Box<Expr<T>>),
    Binary(BinaryOp, Box<Expr<T>>, Box<Expr<T>>),
    Cast(Box<Expr<T>>),
    Call(Intrinsic, Vec<Expr<T>>),
    If(Box<Expr<T>>, Box<Expr<T>>, Box<Expr<T>>),
    Block(Vec<(LocalId, Expr<T>)>, Box<Expr<T>>),
}

impl<T> Expr<T> {
    /// Calls `visit` with every operand, the `let`s of a block before its value.
    pub(crate) fn for_each_child<'a>(&'a self, visit: &mut impl FnMut(&'a Self)) {
        match &self.kind {
            ExprKind::Float(_)
            | ExprKind::Int(_)
            | ExprKind::Bool(_)
            | ExprKind::Local(_)
            | ExprKind::Capture(_)
            | ExprKind::Len(_) => {}
            ExprKind::Index(_, operand) | ExprKind::Unary(_, operand) | ExprKind::Cast(operand) => {
                visit(operand)
            }
            ExprKind::Binary(_, left, right) => [left, right].into_iter().for_each(|child| visit(child)),
            ExprKind::Call(_, arguments) => arguments.iter().for_each(visit),
            ExprKind::If(condition, yes, no) => {
                [condition, yes, no].into_iter().for_each(|child| visit(child))
            }
            ExprKind::Block(lets, value) => {
                lets.iter().for_each(|(_, child)| visit(child));
                visit(value);
            }
        }
    }

    /// The same expression with `map` of every operand, in the order of [`Expr::for_each_child`].
    pub(crate) fn map_children(self, map: &mut impl FnMut(Self) -> Self) -> Self {
        let mut boxed = |child: Box<Self>| Box::new(map(*child));
        let kind = match self.kind {
            ExprKind::Index(capture, index) => ExprKind::Index(capture, boxed(index)),
            ExprKind::Unary(op, operand) => ExprKind::Unary(op, boxed(operand)),
            ExprKind::Cast(operand) => ExprKind::Cast(boxed(operand)),
            ExprKind::Binary(op, left, right) => ExprKind::Binary(op, boxed(left), boxed(right)),
            ExprKind::Call(intrinsic, arguments) => {
                ExprKind::Call(intrinsic, arguments.into_iter().map(map).collect())
            }
            ExprKind::If(condition, yes, no) => ExprKind::If(boxed(condition), boxed(yes), boxed(no)),
            ExprKind::Block(lets, value) => {
                let lets = lets.into_iter().map(|(local, child)| (local, map(child))).collect();
                ExprKind::Block(lets, Box::new(map(*value)))
            }
            leaf => leaf,
        };
        Expr { ty: self.ty, kind }
    }

    /// Whether there is no `let` in it, so that it fits into one expression of C++.
    pub(crate) fn is_inline(&self) -> bool {
        let mut inline = !matches!(self.kind, ExprKind::Block(..));
        self.for_each_child(&mut |child| inline = inline && child.is_inline());
        inline
    }
}

/// A prefix operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnaryOp {
    Neg,
    Not,
}

/// An infix operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    And,
    Or,
    BitAnd,
    BitOr,
    BitXor,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl BinaryOp {
    /// The operator as Rust and CUDA write it.
    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::Rem => "%",
            Self::And => "&&",
            Self::Or => "||",
            Self::BitAnd => "&",
            Self::BitOr => "|",
            Self::BitXor => "^",
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
        }
    }

    pub(crate) fn is_comparison(self) -> bool {
        matches!(self, Self::Eq | Self::Ne | Self::Lt | Self::Le | Self::Gt | Self::Ge)
    }
}

/// A method that device functions may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intrinsic {
    Exp,
    Exp2,
    Ln,
    Log2,
    Tanh,
    Sqrt,
    Sin,
    Cos,
    Floor,
    Ceil,
    Powi,
    Abs,
    Min,
    Max,
}

impl Intrinsic {
    /// What error messages list as the methods to choose from.
    pub(crate) const NAMES: &'static str = "`exp`, `exp2`, `ln`, `log2`, `tanh`, `sqrt`, `sin`, `cos`, `floor`, `ceil`, `powi`, `abs`, `min`, \
         `max`, and `len` of a slice";

    const ALL: [Self; 14] = [
        Self::Exp,
        Self::Exp2,
        Self::Ln,
        Self::Log2,
        Self::Tanh,
        Self::Sqrt,
        Self::Sin,
        Self::Cos,
        Self::Floor,
        Self::Ceil,
        Self::Powi,
        Self::Abs,
        Self::Min,
        Self::Max,
    ];

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|intrinsic| intrinsic.name() == name)
    }

    /// The name of the method in Rust.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exp => "exp",
            Self::Exp2 => "exp2",
            Self::Ln => "ln",
            Self::Log2 => "log2",
            Self::Tanh => "tanh",
            Self::Sqrt => "sqrt",
            Self::Sin => "sin",
            Self::Cos => "cos",
            Self::Floor => "floor",
            Self::Ceil => "ceil",
            Self::Powi => "powi",
            Self::Abs => "abs",
            Self::Min => "min",
            Self::Max => "max",
        }
    }

    /// The number of arguments after the receiver.
    pub(crate) fn arguments(self) -> usize {
        usize::from(matches!(self, Self::Powi | Self::Min | Self::Max))
    }

    /// Whether Rust has this method on `ty`.
    pub(crate) fn accepts(self, ty: Type) -> bool {
        match self {
            Self::Abs => ty.is_signed(),
            Self::Min | Self::Max => ty != Type::Bool,
            _ => ty == Type::F32,
        }
    }

    /// The receivers as an error message lists them.
    pub(crate) fn receivers(self) -> &'static str {
        match self {
            Self::Abs => "`f32`, `i32` and `i64`",
            Self::Min | Self::Max => "`f32` and the integer types",
            _ => "`f32`",
        }
    }
}
