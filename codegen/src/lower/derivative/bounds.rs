//! How large values can get, by which a product that could be 0 · ∞ is told from one that cannot.
//!
//! An `exp` may be infinite where the function is not, as in `1 / (1 + (-score).exp())`. What is made of the score, of
//! captures and positions by sums, products and bounded functions is not, for scores and captures that mean something.

use std::collections::HashMap;

use crate::lower::ir::{BinaryOp, Expr, ExprKind, Intrinsic, LocalId, Type};

/// The greatest magnitudes of a score and of a capture, as powers of two.
const SCORE: f32 = 16.0;
const CAPTURE: f32 = 32.0;
/// Everything below 2^this is finite, with room for a few more factors.
const FINITE: f32 = 120.0;

/// Of every float local that has been seen: the logarithm of its greatest magnitude, infinite where it may overflow.
pub(super) struct Bounds(HashMap<LocalId, f32>);

impl Bounds {
    /// Of a function of the score alone.
    pub(super) fn of_score(score: LocalId) -> Self {
        Bounds(HashMap::from([(score, SCORE)]))
    }

    /// Notes a local of that value.
    pub(super) fn note(&mut self, local: LocalId, value: &Expr, moves: &impl Fn(LocalId) -> bool) {
        if value.ty == Type::F32 {
            self.0.insert(local, self.of(value, moves));
        }
    }

    /// Whether `expr` cannot overflow. `moves` says which locals depend on the score.
    pub(super) fn finite(&self, expr: &Expr, moves: &impl Fn(LocalId) -> bool) -> bool {
        self.of(expr, moves) <= FINITE
    }

    fn of(&self, expr: &Expr, moves: &impl Fn(LocalId) -> bool) -> f32 {
        let of = |expr: &Expr| self.of(expr, moves);
        if expr.ty != Type::F32 {
            return CAPTURE;
        }
        match &expr.kind {
            ExprKind::Float(0.0) => 0.0,
            ExprKind::Float(value) if value.is_finite() => value.abs().log2(),
            ExprKind::Local(id) => self.0.get(id).copied().unwrap_or(f32::INFINITY),
            ExprKind::Capture(_) | ExprKind::Index(..) => CAPTURE,
            ExprKind::Unary(_, operand) => of(operand),
            ExprKind::Cast(operand) => of(operand),
            ExprKind::Binary(op, a, b) => match (op, &b.kind) {
                (BinaryOp::Add | BinaryOp::Sub, _) => of(a).max(of(b)) + 1.0,
                (BinaryOp::Mul, _) => of(a) + of(b),
                (BinaryOp::Div, ExprKind::Float(by)) => of(a) - by.abs().log2(),
                (BinaryOp::Div, _) if !depends(b, moves) => of(a) + CAPTURE,
                (BinaryOp::Rem, _) => of(b),
                _ => f32::INFINITY,
            },
            ExprKind::Call(intrinsic, arguments) => {
                let x = of(&arguments[0]);
                match (intrinsic, arguments.get(1).map(|second| &second.kind)) {
                    (Intrinsic::Tanh | Intrinsic::Sin | Intrinsic::Cos, _) => 0.0,
                    (Intrinsic::Ln | Intrinsic::Log2, _) => 8.0,
                    (Intrinsic::Exp | Intrinsic::Exp2, _) => 1.5 * x.exp2(),
                    (Intrinsic::Sqrt | Intrinsic::Floor | Intrinsic::Ceil, _) => x.max(0.0) + 1.0,
                    (Intrinsic::Powi, Some(ExprKind::Int(n @ 0..))) => x.max(0.0) * *n as f32,
                    (Intrinsic::Min | Intrinsic::Max, _) => x.max(of(&arguments[1])),
                    (Intrinsic::Abs, _) => x,
                    _ => f32::INFINITY,
                }
            }
            ExprKind::If(_, yes, no) => of(yes).max(of(no)),
            ExprKind::Block(_, value) => of(value),
            _ => f32::INFINITY,
        }
    }
}

fn depends(expr: &Expr, moves: &impl Fn(LocalId) -> bool) -> bool {
    let mut found = matches!(expr.kind, ExprKind::Local(id) if moves(id));
    expr.for_each_child(&mut |child| found = found || depends(child, moves));
    found
}
