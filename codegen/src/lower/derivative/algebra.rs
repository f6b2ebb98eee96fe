//! Expressions made with what is known of their operands: zeros and ones leave no trace, literals are computed.
//!
//! A 0 is the derivative of something constant, so `0 · x` is 0 whatever `x` is, infinities and NaN included.

use crate::lower::ir::{BinaryOp, Expr, ExprKind, Intrinsic, Type, UnaryOp};

pub(super) fn float(value: f32) -> Expr {
    Expr { ty: Type::F32, kind: ExprKind::Float(value) }
}

pub(super) fn int(value: i128, ty: Type) -> Expr {
    Expr { ty, kind: ExprKind::Int(value) }
}

pub(super) fn binary(op: BinaryOp, ty: Type, left: Expr, right: Expr) -> Expr {
    Expr { ty, kind: ExprKind::Binary(op, Box::new(left), Box::new(right)) }
}

pub(super) fn call(intrinsic: Intrinsic, ty: Type, arguments: Vec<Expr>) -> Expr {
    Expr { ty, kind: ExprKind::Call(intrinsic, arguments) }
}

/// Whether `expr` is the literal `value`; both zeros are 0.
pub(super) fn is_float(expr: &Expr, value: f32) -> bool {
    literal(expr) == Some(value)
}

fn literal(expr: &Expr) -> Option<f32> {
    if let ExprKind::Float(value) = expr.kind { Some(value) } else { None }
}

/// `compute` of two literals.
fn computed(a: &Expr, b: &Expr, compute: fn(f32, f32) -> f32) -> Option<Expr> {
    Some(float(compute(literal(a)?, literal(b)?)))
}

/// What stands under a minus.
fn negated(expr: Expr) -> Result<Expr, Expr> {
    match expr.kind {
        ExprKind::Unary(UnaryOp::Neg, operand) => Ok(*operand),
        _ => Err(expr),
    }
}

pub(super) fn neg(a: Expr) -> Expr {
    if let ExprKind::If(condition, yes, no) = a.kind {
        if is_float(&yes, 0.0) {
            return choose(*condition, *yes, neg(*no));
        }
        let kind = ExprKind::If(condition, yes, no);
        return Expr { ty: Type::F32, kind: ExprKind::Unary(UnaryOp::Neg, Box::new(Expr { kind, ..a })) };
    }
    match literal(&a) {
        Some(0.0) => float(0.0),
        Some(value) => float(-value),
        None => negated(a)
            .unwrap_or_else(|a| Expr { ty: Type::F32, kind: ExprKind::Unary(UnaryOp::Neg, Box::new(a)) }),
    }
}

pub(super) fn add(a: Expr, b: Expr) -> Expr {
    if is_float(&a, 0.0) {
        return b;
    }
    if is_float(&b, 0.0) {
        return a;
    }
    if let Some(sum) = computed(&a, &b, |a, b| a + b) {
        return sum;
    }
    match negated(b) {
        Ok(b) => sub(a, b),
        Err(b) => binary(BinaryOp::Add, Type::F32, a, b),
    }
}

pub(super) fn sub(a: Expr, b: Expr) -> Expr {
    if is_float(&a, 0.0) {
        return neg(b);
    }
    if is_float(&b, 0.0) {
        return a;
    }
    if let Some(difference) = computed(&a, &b, |a, b| a - b) {
        return difference;
    }
    match negated(b) {
        Ok(b) => add(a, b),
        Err(b) => binary(BinaryOp::Sub, Type::F32, a, b),
    }
}

pub(super) fn mul(a: Expr, b: Expr) -> Expr {
    if is_float(&a, 0.0) || is_float(&b, 0.0) {
        return float(0.0);
    }
    if is_float(&a, 1.0) {
        return b;
    }
    if is_float(&b, 1.0) {
        return a;
    }
    if is_float(&a, -1.0) {
        return neg(b);
    }
    if is_float(&b, -1.0) {
        return neg(a);
    }
    if let Some(product) = computed(&a, &b, |a, b| a * b) {
        return product;
    }
    match b.kind {
        // As in `cap · tanh(score / cap)`.
        ExprKind::Binary(BinaryOp::Div, dividend, divisor) if *divisor == a => *dividend,
        // One division instead of one and a product.
        ExprKind::Binary(BinaryOp::Div, one, divisor) if is_float(&one, 1.0) => div(a, *divisor),
        kind => binary(BinaryOp::Mul, Type::F32, a, Expr { kind, ..b }),
    }
}

pub(super) fn div(a: Expr, b: Expr) -> Expr {
    if is_float(&a, 0.0) || is_float(&b, 1.0) {
        return a;
    }
    computed(&a, &b, |a, b| a / b).unwrap_or_else(|| binary(BinaryOp::Div, Type::F32, a, b))
}

/// `if condition { yes } else { no }`
pub(super) fn choose(condition: Expr, yes: Expr, no: Expr) -> Expr {
    if yes == no {
        return yes;
    }
    match condition.kind {
        ExprKind::Bool(true) => yes,
        ExprKind::Bool(false) => no,
        _ => Expr { ty: yes.ty, kind: ExprKind::If(Box::new(condition), Box::new(yes), Box::new(no)) },
    }
}

/// `slope` with `by` of the first factor of every product in it. A quotient is one factor: its divisor may be what keeps the
/// dividend in bounds.
pub(super) fn scaled(slope: Expr, by: &dyn Fn(Expr) -> Expr) -> Expr {
    match slope.kind {
        ExprKind::Unary(UnaryOp::Neg, operand) => neg(scaled(*operand, by)),
        ExprKind::Binary(BinaryOp::Mul, a, b) => mul(scaled(*a, by), *b),
        ExprKind::Binary(BinaryOp::Add, a, b) => add(scaled(*a, by), scaled(*b, by)),
        ExprKind::Binary(BinaryOp::Sub, a, b) => sub(scaled(*a, by), scaled(*b, by)),
        ExprKind::If(condition, yes, no) => choose(*condition, scaled(*yes, by), scaled(*no, by)),
        ExprKind::Float(0.0) => float(0.0),
        kind => by(Expr { kind, ..slope }),
    }
}
