//! The typed form, run on the host with the meaning of its CUDA text.

use super::ir::{BinaryOp, Body, Expr, ExprKind, Intrinsic, LocalId, Type, UnaryOp};
use super::{CaptureError, CaptureValue, DeviceFunction, FunctionKind, captures};

/// A value of a device function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// An `f32`.
    F32(f32),
    /// An `i32`.
    I32(i32),
    /// A `u32`.
    U32(u32),
    /// An `i64`.
    I64(i64),
    /// A `usize`, 64 bits wide as on the device.
    Usize(u64),
    /// A `bool`.
    Bool(bool),
}

impl Value {
    /// The number, if this is an `f32`.
    pub fn as_f32(self) -> Option<f32> {
        if let Self::F32(value) = self { Some(value) } else { None }
    }

    /// The truth value, if this is a `bool`.
    pub fn as_bool(self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(value) } else { None }
    }
}

/// Why a device function could not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The captures are not those that the function declares.
    #[error(transparent)]
    Captures(#[from] CaptureError),
}

/// A device function with its captures, checked once: ready to be run on the host, element by element.
///
/// ```
/// use tilewright_codegen::lower::{CaptureValue, DeviceFunction, Evaluator, FunctionKind, Value};
///
/// let source = "fn window(b: i32, h: i32, q: i32, kv: i32, size: i32) -> bool { q - kv < size }";
/// let window = DeviceFunction::from_source(FunctionKind::MaskMod, source)?;
/// let window = Evaluator::new(window, vec![CaptureValue::I32(4)])?;
/// assert_eq!(window.run(0.0, 0, 0, 5, 2), Value::Bool(true));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Evaluator {
    function: DeviceFunction,
    captures: Vec<CaptureValue>,
}

impl Evaluator {
    /// Checks the captures against those that the function declares.
    ///
    /// # Errors
    /// [`CaptureError`] if their number or types differ.
    pub fn new(function: DeviceFunction, captures: Vec<CaptureValue>) -> Result<Self, CaptureError> {
        captures::check(&function.name, &function.captures, &captures)?;
        Ok(Evaluator { function, captures })
    }

    /// The function.
    pub fn function(&self) -> &DeviceFunction {
        &self.function
    }

    /// The values of its captures.
    pub fn captures(&self) -> &[CaptureValue] {
        &self.captures
    }

    /// The function's value: an [`Value::F32`] of a score function, a [`Value::Bool`] of a mask function, which
    /// ignores `score`.
    pub fn run(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> Value {
        let Evaluator { function, captures } = self;
        interpret(function, &function.body, score, [b, h, q, kv], captures)
    }

    /// The derivative of a score function's value by `score`; 0 of a mask function, which has no score.
    pub fn gradient(&self, score: f32, b: i32, h: i32, q: i32, kv: i32) -> f32 {
        gradient(&self.function, score, [b, h, q, kv], &self.captures)
    }
}

fn gradient(function: &DeviceFunction, score: f32, position: [i32; 4], captures: &[CaptureValue]) -> f32 {
    let Some(body) = &function.gradient else { return 0.0 };
    match interpret(function, body, score, position, captures) {
        Value::F32(slope) => slope,
        other => ill_typed(&[other]),
    }
}

pub(crate) fn run(
    function: &DeviceFunction,
    score: f32,
    position: [i32; 4],
    values: &[CaptureValue],
) -> Result<Value, EvalError> {
    captures::check(&function.name, &function.captures, values)?;
    Ok(interpret(function, &function.body, score, position, values))
}

pub(crate) fn run_gradient(
    function: &DeviceFunction,
    score: f32,
    position: [i32; 4],
    values: &[CaptureValue],
) -> Result<f32, EvalError> {
    captures::check(&function.name, &function.captures, values)?;
    Ok(gradient(function, score, position, values))
}

/// Locals that fit on the stack: an allocation for each element would cost more than a small function.
const STACK_LOCALS: usize = 24;

/// Runs `body`, which is the function's own or its derivative.
fn interpret(
    function: &DeviceFunction,
    body: &Body,
    score: f32,
    position: [i32; 4],
    captures: &[CaptureValue],
) -> Value {
    // Every `let` is set before it is read; the value here is never seen.
    const UNSET: Value = Value::Bool(false);
    let count = body.locals.len();
    let (mut few, mut many);
    let locals: &mut [Value] = if count <= STACK_LOCALS {
        few = [UNSET; STACK_LOCALS];
        &mut few
    } else {
        many = vec![UNSET; count];
        &mut many
    };
    let leading = if function.kind == FunctionKind::ScoreMod {
        locals[0] = Value::F32(score);
        1
    } else {
        0
    };
    for (local, at) in locals[leading..].iter_mut().zip(position) {
        *local = Value::I32(at);
    }
    Frame { captures, locals }.expr(&body.value)
}

struct Frame<'a> {
    captures: &'a [CaptureValue],
    locals: &'a mut [Value],
}

impl Frame<'_> {
    fn expr(&mut self, expr: &Expr) -> Value {
        match &expr.kind {
            ExprKind::Float(value) => Value::F32(*value),
            ExprKind::Int(value) => int(*value, expr.ty),
            ExprKind::Bool(value) => Value::Bool(*value),
            ExprKind::Local(id) => self.locals[*id],
            ExprKind::Capture(id) => self.capture(*id, 0),
            ExprKind::Len(id) => Value::Usize(self.captures[*id].slice_len().unwrap_or(0) as u64),
            ExprKind::Index(id, index) => match self.expr(index) {
                Value::Usize(index) => self.capture(*id, index),
                other => ill_typed(&[other]),
            },
            ExprKind::Unary(op, operand) => unary(*op, self.expr(operand)),
            ExprKind::Binary(BinaryOp::And, left, right) => Value::Bool(self.bool(left) && self.bool(right)),
            ExprKind::Binary(BinaryOp::Or, left, right) => Value::Bool(self.bool(left) || self.bool(right)),
            ExprKind::Binary(op, left, right) => binary(*op, self.expr(left), self.expr(right)),
            ExprKind::Cast(operand) => cast(self.expr(operand), expr.ty),
            ExprKind::Call(intrinsic, arguments) => {
                // No intrinsic takes more than two.
                let mut values = [Value::Bool(false); 2];
                for (value, argument) in values.iter_mut().zip(arguments) {
                    *value = self.expr(argument);
                }
                call(*intrinsic, &values[..arguments.len()])
            }
            ExprKind::If(condition, yes, no) => {
                if self.bool(condition) {
                    self.expr(yes)
                } else {
                    self.expr(no)
                }
            }
            ExprKind::Block(lets, value) => {
                self.lets(lets);
                self.expr(value)
            }
        }
    }

    fn lets(&mut self, lets: &[(LocalId, Expr)]) {
        for (local, value) in lets {
            self.locals[*local] = self.expr(value);
        }
    }

    fn bool(&mut self, expr: &Expr) -> bool {
        match self.expr(expr) {
            Value::Bool(value) => value,
            other => ill_typed(&[other]),
        }
    }

    /// A scalar, or the element at `index`: zero when there is none.
    fn capture(&self, id: usize, index: u64) -> Value {
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        match &self.captures[id] {
            CaptureValue::F32(value) => Value::F32(*value),
            CaptureValue::I32(value) => Value::I32(*value),
            CaptureValue::U32(value) => Value::U32(*value),
            CaptureValue::Bool(value) => Value::Bool(*value),
            CaptureValue::F32s(values) => Value::F32(values.get(at).copied().unwrap_or_default()),
            CaptureValue::I32s(values) => Value::I32(values.get(at).copied().unwrap_or_default()),
            CaptureValue::U32s(values) => Value::U32(values.get(at).copied().unwrap_or_default()),
        }
    }
}

/// The checker gives operators and methods only operands that they have a meaning for.
pub(crate) fn ill_typed(values: &[Value]) -> ! {
    unreachable!("the checker let through operands of a wrong type: {values:?}")
}

fn int(value: i128, ty: Type) -> Value {
    // Literals were checked to be in range, casts mean to cut off the upper bits.
    match ty {
        Type::I32 => Value::I32(value as i32),
        Type::U32 => Value::U32(value as u32),
        Type::I64 => Value::I64(value as i64),
        Type::Usize => Value::Usize(value as u64),
        Type::F32 => Value::F32(value as f32),
        Type::Bool => Value::Bool(value != 0),
    }
}

pub(crate) fn unary(op: UnaryOp, value: Value) -> Value {
    match (op, value) {
        (UnaryOp::Neg, Value::F32(a)) => Value::F32(-a),
        (UnaryOp::Neg, Value::I32(a)) => Value::I32(a.wrapping_neg()),
        (UnaryOp::Neg, Value::I64(a)) => Value::I64(a.wrapping_neg()),
        (UnaryOp::Not, Value::Bool(a)) => Value::Bool(!a),
        (UnaryOp::Not, Value::I32(a)) => Value::I32(!a),
        (UnaryOp::Not, Value::U32(a)) => Value::U32(!a),
        (UnaryOp::Not, Value::I64(a)) => Value::I64(!a),
        (UnaryOp::Not, Value::Usize(a)) => Value::Usize(!a),
        (_, other) => ill_typed(&[other]),
    }
}

macro_rules! integer_op {
    ($op:expr, $variant:ident, $a:expr, $b:expr) => {
        match $op {
            BinaryOp::Add => Value::$variant($a.wrapping_add($b)),
            BinaryOp::Sub => Value::$variant($a.wrapping_sub($b)),
            BinaryOp::Mul => Value::$variant($a.wrapping_mul($b)),
            BinaryOp::Div => Value::$variant(if $b == 0 { 0 } else { $a.wrapping_div($b) }),
            BinaryOp::Rem => Value::$variant(if $b == 0 { 0 } else { $a.wrapping_rem($b) }),
            BinaryOp::BitAnd => Value::$variant($a & $b),
            BinaryOp::BitOr => Value::$variant($a | $b),
            BinaryOp::BitXor => Value::$variant($a ^ $b),
            other => Value::Bool(compare(other, &$a, &$b)),
        }
    };
}

pub(crate) fn binary(op: BinaryOp, left: Value, right: Value) -> Value {
    match (left, right) {
        (Value::F32(a), Value::F32(b)) => match op {
            BinaryOp::Add => Value::F32(a + b),
            BinaryOp::Sub => Value::F32(a - b),
            BinaryOp::Mul => Value::F32(a * b),
            BinaryOp::Div => Value::F32(a / b),
            BinaryOp::Rem => Value::F32(a % b),
            op => Value::Bool(compare(op, &a, &b)),
        },
        (Value::I32(a), Value::I32(b)) => integer_op!(op, I32, a, b),
        (Value::U32(a), Value::U32(b)) => integer_op!(op, U32, a, b),
        (Value::I64(a), Value::I64(b)) => integer_op!(op, I64, a, b),
        (Value::Usize(a), Value::Usize(b)) => integer_op!(op, Usize, a, b),
        (Value::Bool(a), Value::Bool(b)) => Value::Bool(match op {
            BinaryOp::BitAnd => a & b,
            BinaryOp::BitOr => a | b,
            BinaryOp::BitXor => a ^ b,
            op => compare(op, &a, &b),
        }),
        (left, right) => ill_typed(&[left, right]),
    }
}

fn compare<T: PartialOrd>(op: BinaryOp, a: &T, b: &T) -> bool {
    match op {
        BinaryOp::Eq => a == b,
        BinaryOp::Ne => a != b,
        BinaryOp::Lt => a < b,
        BinaryOp::Le => a <= b,
        BinaryOp::Gt => a > b,
        BinaryOp::Ge => a >= b,
        other => unreachable!("`{}` has no meaning for these operands", other.symbol()),
    }
}

pub(crate) fn cast(value: Value, to: Type) -> Value {
    let value = match value {
        Value::F32(value) => {
            return match to {
                Type::F32 => Value::F32(value),
                Type::I32 => Value::I32(value as i32),
                Type::U32 => Value::U32(value as u32),
                Type::I64 => Value::I64(value as i64),
                Type::Usize => Value::Usize(value as u64),
                Type::Bool => ill_typed(&[Value::F32(value)]),
            };
        }
        Value::I32(value) => i128::from(value),
        Value::U32(value) => i128::from(value),
        Value::I64(value) => i128::from(value),
        Value::Usize(value) => i128::from(value),
        Value::Bool(value) => i128::from(value),
    };
    int(value, to)
}

pub(crate) fn call(intrinsic: Intrinsic, arguments: &[Value]) -> Value {
    match (intrinsic, arguments) {
        (Intrinsic::Powi, [Value::F32(x), Value::I32(n)]) => Value::F32(powi(*x, *n)),
        (Intrinsic::Min, [Value::F32(a), Value::F32(b)]) => Value::F32(smaller(*a, *b)),
        (Intrinsic::Max, [Value::F32(a), Value::F32(b)]) => Value::F32(-smaller(-a, -b)),
        (Intrinsic::Min, [Value::I32(a), Value::I32(b)]) => Value::I32(*a.min(b)),
        (Intrinsic::Min, [Value::U32(a), Value::U32(b)]) => Value::U32(*a.min(b)),
        (Intrinsic::Min, [Value::I64(a), Value::I64(b)]) => Value::I64(*a.min(b)),
        (Intrinsic::Min, [Value::Usize(a), Value::Usize(b)]) => Value::Usize(*a.min(b)),
        (Intrinsic::Max, [Value::I32(a), Value::I32(b)]) => Value::I32(*a.max(b)),
        (Intrinsic::Max, [Value::U32(a), Value::U32(b)]) => Value::U32(*a.max(b)),
        (Intrinsic::Max, [Value::I64(a), Value::I64(b)]) => Value::I64(*a.max(b)),
        (Intrinsic::Max, [Value::Usize(a), Value::Usize(b)]) => Value::Usize(*a.max(b)),
        (Intrinsic::Abs, [Value::I32(a)]) => Value::I32(a.wrapping_abs()),
        (Intrinsic::Abs, [Value::I64(a)]) => Value::I64(a.wrapping_abs()),
        (intrinsic, [Value::F32(x)]) => Value::F32(match intrinsic {
            Intrinsic::Exp => x.exp(),
            Intrinsic::Exp2 => x.exp2(),
            Intrinsic::Ln => x.ln(),
            Intrinsic::Log2 => x.log2(),
            Intrinsic::Tanh => x.tanh(),
            Intrinsic::Sqrt => x.sqrt(),
            Intrinsic::Sin => x.sin(),
            Intrinsic::Cos => x.cos(),
            Intrinsic::Floor => x.floor(),
            Intrinsic::Ceil => x.ceil(),
            Intrinsic::Abs => x.abs(),
            Intrinsic::Powi | Intrinsic::Min | Intrinsic::Max => ill_typed(arguments),
        }),
        (_, arguments) => ill_typed(arguments),
    }
}

/// The smaller number, a number rather than NaN, and -0 rather than 0: what the device does. Rust leaves the
/// sign of zero open.
fn smaller(a: f32, b: f32) -> f32 {
    if a == 0.0 && b == 0.0 { if a.is_sign_negative() { a } else { b } } else { a.min(b) }
}

/// The order of multiplications of `tw::powi`; Rust's own `powi` may choose another.
fn powi(mut x: f32, n: i32) -> f32 {
    let mut exponent = n.unsigned_abs();
    let mut power = 1.0;
    while exponent != 0 {
        if exponent & 1 == 1 {
            power *= x;
        }
        x *= x;
        exponent >>= 1;
    }
    if n < 0 { 1.0 / power } else { power }
}
