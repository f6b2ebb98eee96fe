//! The derivative of a score function by its score, in the typed form.
//!
//! Forward differentiation: every float has its value and its slope, the derivative by the score. What does not depend
//! on the score has the slope 0, so positions, captures, conditions and everything that passed through an integer cost
//! nothing. `let`s become one flat list in each branch; values that a slope reads beside the function itself get a name,
//! so the derivative is as long as the function, up to a factor, however deep its expressions nest.
//!
//! # What overflows
//!
//! In `1 / (1 + (-10.0 * score).exp())` the `exp` is infinite for scores below -9, its slope a little earlier, and the
//! function is as good as 0 there, with a slope of 0. The chain rule as it is written in books makes 0 · ∞ of that. So a
//! slope that may overflow stays a product of names (an *open* slope), which the next rule's factor enters from the left:
//! what makes it small is multiplied first. And where that factor is 0 so is the slope, whatever else is in the product.
//! Slopes that cannot overflow (`bounds` says which) are written without any of this.

mod algebra;
mod bounds;
mod tidy;

use std::collections::HashMap;
use std::f32::consts::LN_2;

use super::ir::{BinaryOp, Body, Expr, ExprKind, Intrinsic, Local, LocalId, Type, UnaryOp};
use algebra::{add, binary, call, choose, div, float, int, is_float, mul, neg, scaled, sub};
use bounds::Bounds;
use tidy::{is_atom, is_small, needed, tidy};

/// The score's place among the parameters.
const SCORE: LocalId = 0;

/// A function of the same `parameters` as `body`, the first of which is the score: the derivative by it.
pub(super) fn by_score(body: &Body, parameters: usize) -> Body {
    let mut differentiator = Differentiator {
        locals: body.locals.clone(),
        slopes: HashMap::from([(SCORE, float(1.0))]),
        bounds: Bounds::of_score(SCORE),
        lets: Vec::new(),
    };
    let slope = differentiator.dual(&body.value).slope;
    let Differentiator { locals, lets, .. } = differentiator;
    tidy(Body { locals, value: needed(&lets, slope) }, parameters, body.locals.len())
}

/// An expression without blocks outside of the branches of an `if`, and its derivative.
struct Dual {
    value: Expr,
    /// The literal 0 where the value does not depend on the score.
    slope: Expr,
}

impl Dual {
    fn constant(value: Expr) -> Self {
        Dual { value, slope: float(0.0) }
    }

    fn is_constant(&self) -> bool {
        is_float(&self.slope, 0.0)
    }
}

struct Differentiator {
    locals: Vec<Local>,
    /// Of the locals that depend on the score: a local, a literal, or a small open slope.
    slopes: HashMap<LocalId, Expr>,
    bounds: Bounds,
    /// The `let`s of the branch being differentiated, so far.
    lets: Vec<(LocalId, Expr)>,
}

impl Differentiator {
    fn dual(&mut self, expr: &Expr) -> Dual {
        let with = |kind| Expr { ty: expr.ty, kind };
        match &expr.kind {
            ExprKind::Float(_)
            | ExprKind::Int(_)
            | ExprKind::Bool(_)
            | ExprKind::Capture(_)
            | ExprKind::Len(_) => Dual::constant(expr.clone()),
            ExprKind::Local(id) => Dual {
                value: expr.clone(),
                slope: self.slopes.get(id).cloned().unwrap_or_else(|| float(0.0)),
            },
            ExprKind::Index(capture, index) => {
                let index = self.dual(index).value;
                Dual::constant(with(ExprKind::Index(*capture, Box::new(index))))
            }
            ExprKind::Unary(op, operand) => {
                let operand = self.dual(operand);
                let value = with(ExprKind::Unary(*op, Box::new(operand.value)));
                match op {
                    UnaryOp::Neg => Dual { value, slope: neg(operand.slope) },
                    UnaryOp::Not => Dual::constant(value),
                }
            }
            ExprKind::Binary(op, left, right) => {
                let (left, right) = (self.dual(left), self.dual(right));
                self.binary(*op, expr.ty, left, right)
            }
            ExprKind::Cast(operand) if operand.ty == Type::F32 && expr.ty == Type::F32 => self.dual(operand),
            ExprKind::Cast(operand) => {
                // To an integer and back is a step function.
                let operand = self.dual(operand).value;
                Dual::constant(with(ExprKind::Cast(Box::new(operand))))
            }
            ExprKind::Call(intrinsic, arguments) => {
                let arguments = arguments.iter().map(|argument| self.dual(argument)).collect();
                self.call(*intrinsic, expr.ty, arguments)
            }
            ExprKind::If(condition, yes, no) => self.choice(condition, yes, no),
            ExprKind::Block(lets, value) => {
                for (local, value) in lets {
                    self.bind(*local, value);
                }
                self.dual(value)
            }
        }
    }

    /// A `let` of the function, and one of its slope.
    fn bind(&mut self, local: LocalId, value: &Expr) {
        let Dual { value, slope } = self.dual(value);
        self.note(local, &value);
        self.lets.push((local, value));
        if !is_float(&slope, 0.0) {
            let name = format!("d_{}", self.locals[local].name);
            let stays = !self.finite(&slope) && is_small(&slope);
            let slope = if stays { slope } else { self.name(&name, slope) };
            self.slopes.insert(local, slope);
        }
    }

    fn note(&mut self, local: LocalId, value: &Expr) {
        let slopes = &self.slopes;
        self.bounds.note(local, value, &|local| slopes.contains_key(&local));
    }

    /// Whether the value of `expr` cannot overflow where the function does not.
    fn finite(&self, expr: &Expr) -> bool {
        self.bounds.finite(expr, &|local| self.slopes.contains_key(&local))
    }

    /// An open slope: itself, or a name for it where it has grown large.
    fn open(&mut self, slope: Expr) -> Expr {
        if is_small(&slope) { slope } else { self.temporary(slope) }
    }

    /// `factor · slope`
    fn chain(&mut self, factor: Expr, slope: Expr) -> Expr {
        if is_float(&slope, 0.0) || is_float(&factor, 0.0) || self.finite(&slope) && self.finite(&factor) {
            return mul(factor, slope);
        }
        let (factor, slope) = (self.temporary(factor), self.open(slope));
        scaled(slope, &|first| mul(factor.clone(), first))
    }

    /// A method's rule with the slope of its argument. What the method makes of a value that overflows does not, or is infinite
    /// itself: so the new slope is no open one.
    fn settled(&mut self, da: Expr, rule: impl FnOnce(&mut Self, Expr) -> Expr) -> Expr {
        if self.finite(&da) {
            return rule(self, da);
        }
        let slope = rule(self, da);
        self.temporary(slope)
    }

    /// `factor · slope` where the factor may be 0 while the slope overflows: 0 then.
    fn fading_chain(&mut self, factor: Expr, slope: Expr) -> Expr {
        if self.finite(&slope) {
            return self.chain(factor, slope);
        }
        let factor = self.temporary(factor);
        let product = self.chain(factor.clone(), slope);
        unless_zero(factor, product)
    }

    /// `slope / divisor`, of something that costs nothing to read again.
    fn quotient(&mut self, slope: Expr, divisor: Expr) -> Expr {
        if self.finite(&slope) {
            return div(slope, divisor);
        }
        let slope = self.open(slope);
        scaled(slope, &|first| div(first, divisor.clone()))
    }

    /// Something that costs nothing to read again: `expr` if it is, or a local of that value.
    fn name(&mut self, name: &str, expr: Expr) -> Expr {
        if is_atom(&expr) {
            return expr;
        }
        let (id, ty) = (self.locals.len(), expr.ty);
        self.locals.push(Local { name: name.to_owned(), ty });
        self.note(id, &expr);
        self.lets.push((id, expr));
        Expr { ty, kind: ExprKind::Local(id) }
    }

    fn temporary(&mut self, expr: Expr) -> Expr {
        self.name("t", expr)
    }

    fn binary(&mut self, op: BinaryOp, ty: Type, left: Dual, right: Dual) -> Dual {
        let (a, b, da, db) = (left.value, right.value, left.slope, right.slope);
        let steady = [&da, &db].map(|slope| is_float(slope, 0.0));
        if ty != Type::F32 || steady == [true, true] {
            return Dual::constant(binary(op, ty, a, b));
        }
        match op {
            BinaryOp::Add => Dual { value: binary(op, ty, a, b), slope: add(da, db) },
            BinaryOp::Sub => Dual { value: binary(op, ty, a, b), slope: sub(da, db) },
            BinaryOp::Mul => {
                let a = if steady[1] { a } else { self.temporary(a) };
                let b = if steady[0] { b } else { self.temporary(b) };
                let slope = add(self.chain(b.clone(), da), self.chain(a.clone(), db));
                Dual { value: binary(op, ty, a, b), slope }
            }
            BinaryOp::Div => {
                let b = self.temporary(b);
                if steady[1] {
                    let slope = self.quotient(da, b.clone());
                    return Dual { value: binary(op, ty, a, b), slope };
                }
                let quotient = self.temporary(binary(op, ty, a, b.clone()));
                if self.finite(&da) && self.finite(&db) {
                    let slope = div(sub(da, mul(quotient.clone(), db)), b);
                    return Dual { value: quotient, slope };
                }
                // Not by the square of `b`, which overflows.
                let fall = self.quotient(db, b.clone());
                let slope = sub(self.quotient(da, b), self.fading_chain(quotient.clone(), fall));
                let slope = self.temporary(slope);
                Dual { value: quotient, slope }
            }
            BinaryOp::Rem if steady[1] => Dual { value: binary(op, ty, a, b), slope: da },
            BinaryOp::Rem => {
                // a % b is a - b · trunc(a / b), and trunc is constant between its steps.
                let (a, b) = (self.temporary(a), self.temporary(b));
                let rest = self.temporary(binary(op, ty, a.clone(), b.clone()));
                let whole = div(sub(a, rest.clone()), b);
                Dual { value: rest, slope: sub(da, self.fading_chain(whole, db)) }
            }
            other => unreachable!("`{}` gives no float", other.symbol()),
        }
    }

    fn call(&mut self, intrinsic: Intrinsic, ty: Type, mut arguments: Vec<Dual>) -> Dual {
        if ty != Type::F32 || arguments.iter().all(Dual::is_constant) {
            let values = arguments.into_iter().map(|argument| argument.value).collect();
            return Dual::constant(call(intrinsic, ty, values));
        }
        let second = if arguments.len() > 1 { arguments.pop() } else { None };
        let Some(Dual { value: a, slope: da }) = arguments.pop() else {
            unreachable!("every method has a receiver")
        };
        match (intrinsic, second) {
            (Intrinsic::Min | Intrinsic::Max, Some(Dual { value: b, slope: db })) => {
                // The comparison is true at a tie and where the other is NaN, false where the receiver is.
                let a = self.temporary(a);
                let value = self.temporary(call(intrinsic, ty, vec![a.clone(), b]));
                let receiver = binary(BinaryOp::Eq, Type::Bool, value.clone(), a);
                Dual { value, slope: choose(receiver, da, db) }
            }
            (Intrinsic::Powi, Some(exponent)) => self.powi(a, da, exponent.value),
            _ => self.method(intrinsic, a, da),
        }
    }

    fn powi(&mut self, a: Expr, da: Expr, exponent: Expr) -> Dual {
        let a = self.temporary(a);
        let power = |exponent| call(Intrinsic::Powi, Type::F32, vec![a.clone(), exponent]);
        let slope = match exponent.kind {
            ExprKind::Int(0) => float(0.0),
            ExprKind::Int(1) => da,
            ExprKind::Int(2) => self.chain(mul(float(2.0), a.clone()), da),
            ExprKind::Int(n @ ..0) => {
                let value = self.temporary(power(exponent));
                let slope = self.reciprocal(float(n as f32), &value, &a, da);
                return Dual { value, slope };
            }
            ExprKind::Int(n) => self.fading_chain(mul(float(n as f32), power(int(n - 1, Type::I32))), da),
            _ => {
                let n = self.temporary(exponent.clone());
                let compare = |op| binary(op, Type::Bool, n.clone(), int(0, Type::I32));
                let below = binary(BinaryOp::Sub, Type::I32, n.clone(), int(1, Type::I32));
                let factor = Expr { ty: Type::F32, kind: ExprKind::Cast(Box::new(n.clone())) };
                // 0 · 0^-1 is NaN: the slope of a constant is 0 everywhere.
                let steep = choose(compare(BinaryOp::Eq), float(0.0), mul(factor.clone(), power(below)));
                if self.finite(&da) {
                    self.chain(steep, da)
                } else {
                    let (da, value) = (self.open(da), self.temporary(power(exponent.clone())));
                    let falling = self.reciprocal(factor, &value, &a, da.clone());
                    choose(compare(BinaryOp::Lt), falling, self.fading_chain(steep, da))
                }
            }
        };
        Dual { value: power(exponent), slope }
    }

    /// The slope of `value`, a negative power `n` of `a`: not by the power below, which vanishes long before.
    fn reciprocal(&mut self, n: Expr, value: &Expr, a: &Expr, da: Expr) -> Expr {
        let factor = mul(n, value.clone());
        if self.finite(&da) {
            return mul(factor, div(da, a.clone()));
        }
        let fall = self.quotient(da, a.clone());
        self.fading_chain(factor, fall)
    }

    /// A method of a float alone, whose slope is not 0.
    fn method(&mut self, intrinsic: Intrinsic, a: Expr, da: Expr) -> Dual {
        let apply = |intrinsic, a: Expr| call(intrinsic, Type::F32, vec![a]);
        let compare = |op, a: Expr| binary(op, Type::Bool, a, float(0.0));
        match intrinsic {
            Intrinsic::Floor | Intrinsic::Ceil => Dual::constant(apply(intrinsic, a)),
            // In terms of the value.
            Intrinsic::Exp | Intrinsic::Exp2 | Intrinsic::Tanh | Intrinsic::Sqrt => {
                let value = self.temporary(apply(intrinsic, a));
                let y = value.clone();
                let slope = match intrinsic {
                    // The argument is small where the value is finite, and so is its slope.
                    Intrinsic::Exp | Intrinsic::Exp2 => {
                        let factor = if intrinsic == Intrinsic::Exp { y } else { mul(float(LN_2), y) };
                        let da = if self.finite(&da) { da } else { self.temporary(da) };
                        self.fading_chain(factor, da)
                    }
                    Intrinsic::Tanh => {
                        let factor = sub(float(1.0), mul(y.clone(), y));
                        self.settled(da, |this, da| this.fading_chain(factor, da))
                    }
                    _ => {
                        let rises = compare(BinaryOp::Gt, y.clone());
                        let rule = |this: &mut Self, da| this.quotient(da, mul(float(2.0), y));
                        choose(rises, self.settled(da, rule), float(0.0))
                    }
                };
                Dual { value, slope }
            }
            // In terms of the argument.
            _ => {
                let a = self.temporary(a);
                let x = a.clone();
                let slope = match intrinsic {
                    Intrinsic::Ln => self.settled(da, |this, da| this.quotient(da, x)),
                    Intrinsic::Log2 => self.settled(da, |this, da| this.quotient(da, mul(float(LN_2), x))),
                    Intrinsic::Sin => self.settled(da, |this, da| this.chain(apply(Intrinsic::Cos, x), da)),
                    Intrinsic::Cos => {
                        neg(self.settled(da, |this, da| this.chain(apply(Intrinsic::Sin, x), da)))
                    }
                    Intrinsic::Abs => {
                        let below = choose(compare(BinaryOp::Lt, x.clone()), float(-1.0), float(0.0));
                        self.fading_chain(choose(compare(BinaryOp::Gt, x), float(1.0), below), da)
                    }
                    other => unreachable!("{other:?} has a rule above"),
                };
                Dual { value: apply(intrinsic, a), slope }
            }
        }
    }

    fn choice(&mut self, condition: &Expr, yes: &Expr, no: &Expr) -> Dual {
        let condition = self.dual(condition).value;
        let ((yes_lets, yes), (no_lets, no)) = (self.branch(yes), self.branch(no));
        let moves = !(yes.is_constant() && no.is_constant());
        let condition = if moves { self.temporary(condition) } else { condition };
        let slope = if moves {
            choose(condition.clone(), needed(&yes_lets, yes.slope), needed(&no_lets, no.slope))
        } else {
            float(0.0)
        };
        let (yes, no) = (needed(&yes_lets, yes.value), needed(&no_lets, no.value));
        let ty = yes.ty;
        let kind = ExprKind::If(Box::new(condition), Box::new(yes), Box::new(no));
        Dual { value: Expr { ty, kind }, slope }
    }

    /// A branch with the `let`s it needs: they stay inside of it.
    fn branch(&mut self, expr: &Expr) -> (Vec<(LocalId, Expr)>, Dual) {
        let outer = std::mem::take(&mut self.lets);
        let dual = self.dual(expr);
        (std::mem::replace(&mut self.lets, outer), dual)
    }
}

/// `slope`, or 0 where the factor in front of it is.
fn unless_zero(factor: Expr, slope: Expr) -> Expr {
    choose(binary(BinaryOp::Eq, Type::Bool, factor, float(0.0)), float(0.0), slope)
}
