//! The interpreter once more, with f64 in the place of f32: differences in f32 would be rounding.

use crate::lower::eval::{binary, call, cast, ill_typed, unary};
use crate::lower::ir::{BinaryOp, Body, Expr, ExprKind, Intrinsic, UnaryOp};
use crate::lower::{CaptureValue, Type, Value};

/// The value of `body` for a score at a fixed position, and the largest magnitude that was computed on the way.
pub(super) fn run(body: &Body, captures: &[CaptureValue], score: f64) -> (f64, f64) {
    let int = |value: i32| Num::Other(Value::I32(value));
    let mut wide = Wide { captures, locals: vec![int(0); body.locals.len()], peak: 0.0 };
    let leading = [Num::Float(score), int(1), int(2), int(3), int(4)];
    wide.locals[..leading.len()].copy_from_slice(&leading);
    (wide.float(&body.value), wide.peak)
}

#[derive(Clone, Copy, Debug)]
enum Num {
    Float(f64),
    Other(Value),
}

struct Wide<'a> {
    captures: &'a [CaptureValue],
    locals: Vec<Num>,
    /// The largest magnitude that was computed, infinite after a NaN.
    peak: f64,
}

impl Wide<'_> {
    fn expr(&mut self, expr: &Expr) -> Num {
        let num = self.compute(expr);
        let computed = matches!(expr.kind, ExprKind::Unary(..) | ExprKind::Binary(..) | ExprKind::Call(..));
        if let Num::Float(value) = num
            && computed
        {
            self.peak = if value.is_nan() { f64::INFINITY } else { self.peak.max(value.abs()) };
        }
        num
    }

    fn float(&mut self, expr: &Expr) -> f64 {
        match self.expr(expr) {
            Num::Float(value) => value,
            Num::Other(value) => ill_typed(&[value]),
        }
    }

    fn other(&mut self, expr: &Expr) -> Value {
        match self.expr(expr) {
            Num::Other(value) => value,
            Num::Float(value) => panic!("a float of {value}"),
        }
    }

    fn compute(&mut self, expr: &Expr) -> Num {
        match &expr.kind {
            ExprKind::Float(value) => Num::Float((*value).into()),
            ExprKind::Int(value) => Num::Other(cast(Value::I64(*value as i64), expr.ty)),
            ExprKind::Bool(value) => Num::Other(Value::Bool(*value)),
            ExprKind::Local(id) => self.locals[*id],
            ExprKind::Capture(id) => match &self.captures[*id] {
                CaptureValue::F32(value) => Num::Float((*value).into()),
                CaptureValue::I32(value) => Num::Other(Value::I32(*value)),
                CaptureValue::U32(value) => Num::Other(Value::U32(*value)),
                CaptureValue::Bool(value) => Num::Other(Value::Bool(*value)),
                other => panic!("{other:?} is a slice"),
            },
            ExprKind::Len(id) => Num::Other(Value::Usize(self.captures[*id].slice_len().unwrap() as u64)),
            ExprKind::Index(id, index) => {
                let Value::Usize(index) = self.other(index) else { panic!("an index is a usize") };
                let at = usize::try_from(index).unwrap();
                match &self.captures[*id] {
                    CaptureValue::F32s(all) => Num::Float(all.get(at).copied().unwrap_or(0.0).into()),
                    CaptureValue::I32s(all) => Num::Other(Value::I32(all.get(at).copied().unwrap_or(0))),
                    CaptureValue::U32s(all) => Num::Other(Value::U32(all.get(at).copied().unwrap_or(0))),
                    other => panic!("{other:?} is no slice"),
                }
            }
            ExprKind::Unary(UnaryOp::Neg, operand) if operand.ty == Type::F32 => {
                Num::Float(-self.float(operand))
            }
            ExprKind::Unary(op, operand) => Num::Other(unary(*op, self.other(operand))),
            ExprKind::Binary(op, left, right) if left.ty == Type::F32 => {
                let (a, b) = (self.float(left), self.float(right));
                match op {
                    BinaryOp::Add => Num::Float(a + b),
                    BinaryOp::Sub => Num::Float(a - b),
                    BinaryOp::Mul => Num::Float(a * b),
                    BinaryOp::Div => Num::Float(a / b),
                    BinaryOp::Rem => {
                        // Steps as close as the points of the difference.
                        self.peak = if b.abs() < 1e-2 { f64::INFINITY } else { self.peak };
                        Num::Float(a % b)
                    }
                    BinaryOp::Eq => Num::Other(Value::Bool(a == b)),
                    BinaryOp::Ne => Num::Other(Value::Bool(a != b)),
                    BinaryOp::Lt => Num::Other(Value::Bool(a < b)),
                    BinaryOp::Le => Num::Other(Value::Bool(a <= b)),
                    BinaryOp::Gt => Num::Other(Value::Bool(a > b)),
                    _ => Num::Other(Value::Bool(a >= b)),
                }
            }
            ExprKind::Binary(op, left, right) => {
                let op = match op {
                    BinaryOp::And => BinaryOp::BitAnd,
                    BinaryOp::Or => BinaryOp::BitOr,
                    op => *op,
                };
                Num::Other(binary(op, self.other(left), self.other(right)))
            }
            ExprKind::Cast(operand) => match (self.expr(operand), expr.ty) {
                (Num::Float(value), Type::F32) => Num::Float(value),
                (Num::Float(value), Type::I32) => Num::Other(Value::I32(value as i32)),
                (Num::Float(value), Type::U32) => Num::Other(Value::U32(value as u32)),
                (Num::Float(value), Type::I64) => Num::Other(Value::I64(value as i64)),
                (Num::Float(value), _) => Num::Other(Value::Usize(value as u64)),
                (Num::Other(value), Type::F32) => Num::Float(match value {
                    Value::I32(value) => value.into(),
                    Value::U32(value) => value.into(),
                    Value::I64(value) => value as f64,
                    Value::Usize(value) => value as f64,
                    other => ill_typed(&[other]),
                }),
                (Num::Other(value), ty) => Num::Other(cast(value, ty)),
            },
            ExprKind::Call(intrinsic, arguments) if expr.ty == Type::F32 => {
                let x = self.float(&arguments[0]);
                Num::Float(match intrinsic {
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
                    Intrinsic::Min => x.min(self.float(&arguments[1])),
                    Intrinsic::Max => x.max(self.float(&arguments[1])),
                    Intrinsic::Powi => match self.other(&arguments[1]) {
                        Value::I32(n) => x.powi(n),
                        other => ill_typed(&[other]),
                    },
                })
            }
            ExprKind::Call(intrinsic, arguments) => {
                let arguments: Vec<Value> = arguments.iter().map(|argument| self.other(argument)).collect();
                Num::Other(call(*intrinsic, &arguments))
            }
            ExprKind::If(condition, yes, no) => match self.other(condition) {
                Value::Bool(true) => self.expr(yes),
                _ => self.expr(no),
            },
            ExprKind::Block(lets, value) => {
                for (local, value) in lets {
                    self.locals[*local] = self.expr(value);
                }
                self.expr(value)
            }
        }
    }
}
