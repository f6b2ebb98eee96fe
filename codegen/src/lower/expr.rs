//! Checking of expressions. Calls are in `calls`.

use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{BinOp, Lit, UnOp};

use super::infer::{Class, Ty};
use super::ir::{BinaryOp, Expr, ExprKind, Type, UnaryOp};
use super::parse::{Binding, Checker, value_type};
use super::reject;

pub(crate) type Checked = syn::Result<Expr<Ty>>;

/// Deep enough for any formula by hand, shallow enough for every stack that later walks the tree.
const MAX_DEPTH: usize = 100;

const BOOL: Ty = Ty::Known(Type::Bool);

pub(crate) fn typed(ty: Type, kind: ExprKind<Ty>) -> Expr<Ty> {
    Expr { ty: Ty::Known(ty), kind }
}

impl Checker {
    /// Checks `expr`. `cast_to` is the target of an enclosing cast: as in Rust, a literal right under it takes
    /// that type, so `3_000_000_000 as i64` never passes through `i32`.
    pub(crate) fn expr(&mut self, expr: &syn::Expr, cast_to: Option<Type>) -> Checked {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(syn::Error::new_spanned(
                expr,
                format!("expressions may nest {MAX_DEPTH} deep: name a part of this one with `let`"),
            ));
        }
        let checked = self.expr_at_depth(expr, cast_to);
        self.depth -= 1;
        checked
    }

    fn expr_at_depth(&mut self, expr: &syn::Expr, cast_to: Option<Type>) -> Checked {
        if let Some(error) = reject::expression(expr) {
            return Err(error);
        }
        match expr {
            syn::Expr::Lit(lit) => {
                reject::attributes(&lit.attrs)?;
                self.literal(&lit.lit, false, cast_to)
            }
            syn::Expr::Path(path) => self.path(path),
            syn::Expr::Paren(paren) => self.expr(&paren.expr, cast_to),
            syn::Expr::Group(group) => self.expr(&group.expr, cast_to),
            syn::Expr::Block(block) => {
                reject::attributes(&block.attrs)?;
                self.block(&block.block, false)
            }
            syn::Expr::If(choice) => self.choice(choice),
            syn::Expr::Unary(unary) => self.unary(unary, cast_to),
            syn::Expr::Binary(binary) => self.binary(binary),
            syn::Expr::Cast(cast) => self.cast(cast),
            syn::Expr::Index(index) => self.index(index),
            syn::Expr::MethodCall(call) => self.method(call),
            syn::Expr::Call(call) => self.call(call),
            other => Err(syn::Error::new_spanned(
                other,
                "this expression is not supported in a device function: use `let`, `if` and `else`, arithmetic, \
                 comparisons, casts and the methods of numbers",
            )),
        }
    }

    /// Fails unless `found` is, or can become, `expected`.
    pub(crate) fn expect(&mut self, found: Ty, expected: Type, at: &syn::Expr, who: &str) -> syn::Result<()> {
        if self.infer.unify(found, Ty::Known(expected)) {
            return Ok(());
        }
        let found_text = self.infer.describe(found);
        let expected_text = expected.name();
        let advice = match self.infer.look(found) {
            Err(Class::Int) if expected == Type::F32 => ": write the literal with a `.0`".into(),
            Ok(found) if can_cast(found, expected) => format!(": cast it with `as {expected_text}`"),
            _ if expected == Type::Bool => ": compare it with `==`, `<` and so on".into(),
            _ => String::new(),
        };
        Err(syn::Error::new_spanned(at, format!("{who} needs `{expected_text}`, found {found_text}{advice}")))
    }

    fn literal(&mut self, lit: &Lit, negative: bool, cast_to: Option<Type>) -> Checked {
        let fail = |message: String| Err(syn::Error::new_spanned(lit, message));
        let suffix_type = |suffix: &str| match suffix {
            "" => Ok(None),
            _ => Type::from_name(suffix).filter(|&ty| ty != Type::Bool).map(Some).ok_or_else(|| {
                syn::Error::new_spanned(
                    lit,
                    format!("`{suffix}` is not a type of device functions: use {}", Type::NAMES),
                )
            }),
        };
        let float = |digits: &str| match digits.parse::<f32>() {
            Ok(value) if value.is_finite() => Ok(if negative { -value } else { value }),
            _ => Err(syn::Error::new_spanned(lit, format!("{digits} does not fit `f32`"))),
        };
        match lit {
            Lit::Bool(value) => Ok(typed(Type::Bool, ExprKind::Bool(value.value))),
            Lit::Int(int) => {
                let suffix = suffix_type(int.suffix())?;
                if suffix == Some(Type::F32) {
                    return Ok(typed(Type::F32, ExprKind::Float(float(int.base10_digits())?)));
                }
                let Ok(value) = int.base10_parse::<u64>() else {
                    return fail(format!("{} does not fit any integer type", int.base10_digits()));
                };
                let value = if negative { -i128::from(value) } else { i128::from(value) };
                let ty = suffix.or(cast_to.filter(|ty| ty.is_int()));
                Ok(Expr { ty: self.infer.int_literal(value, ty, lit.span()), kind: ExprKind::Int(value) })
            }
            Lit::Float(number) => {
                let suffix = suffix_type(number.suffix())?;
                if suffix.is_some_and(|ty| ty != Type::F32) {
                    return fail(format!("a literal with a fraction cannot be `{}`", number.suffix()));
                }
                let ty = suffix.or(cast_to.filter(|&ty| ty == Type::F32));
                let kind = ExprKind::Float(float(number.base10_digits())?);
                Ok(Expr { ty: self.infer.float_literal(ty, lit.span()), kind })
            }
            _ => fail("this literal is not supported in a device function: use numbers and bools".into()),
        }
    }

    fn find(&self, path: &syn::ExprPath) -> Option<Binding> {
        let name = path.path.get_ident().filter(|_| path.qself.is_none())?.unraw().to_string();
        self.scope.iter().rev().find(|(other, _)| *other == name).map(|(_, binding)| *binding)
    }

    fn path(&mut self, path: &syn::ExprPath) -> Checked {
        reject::attributes(&path.attrs)?;
        match self.find(path) {
            Some(Binding::Local(id)) => Ok(Expr { ty: self.locals[id].ty, kind: ExprKind::Local(id) }),
            Some(Binding::Capture(id)) if self.captures[id].ty.is_slice() => {
                let name = &self.captures[id].name;
                Err(syn::Error::new_spanned(
                    path,
                    format!(
                        "`{name}` is a slice: read an element as in `{name}[q as usize]`, or `{name}.len()`"
                    ),
                ))
            }
            Some(Binding::Capture(id)) => Ok(typed(self.captures[id].ty.element(), ExprKind::Capture(id))),
            None => constant(path),
        }
    }

    fn choice(&mut self, choice: &syn::ExprIf) -> Checked {
        reject::attributes(&choice.attrs)?;
        let Some((_, no)) = &choice.else_branch else { return Err(reject::if_without_else(choice)) };
        let condition = self.expr(&choice.cond, None)?;
        self.expect(condition.ty, Type::Bool, &choice.cond, "the condition of `if`")?;
        let yes = self.block(&choice.then_branch, false)?;
        let no_value = self.expr(no, None)?;
        if !self.infer.unify(yes.ty, no_value.ty) {
            return Err(syn::Error::new_spanned(
                no,
                format!(
                    "the branches of `if` need one type, found {} and {}: cast one with `as`",
                    self.infer.describe(yes.ty),
                    self.infer.describe(no_value.ty)
                ),
            ));
        }
        let ty = yes.ty;
        Ok(Expr { ty, kind: ExprKind::If(Box::new(condition), Box::new(yes), Box::new(no_value)) })
    }

    fn unary(&mut self, unary: &syn::ExprUnary, cast_to: Option<Type>) -> Checked {
        reject::attributes(&unary.attrs)?;
        if let (UnOp::Neg(minus), syn::Expr::Lit(lit)) = (&unary.op, &*unary.expr)
            && !matches!(lit.lit, Lit::Bool(_))
        {
            // One literal, so that the smallest value of a type can be written.
            let value = self.literal(&lit.lit, true, cast_to)?;
            self.infer.require_signed(value.ty, minus.span());
            return Ok(value);
        }
        let op = match unary.op {
            UnOp::Neg(_) => UnaryOp::Neg,
            UnOp::Not(_) => UnaryOp::Not,
            _ => {
                return Err(syn::Error::new_spanned(
                    unary.op,
                    "this operator is not supported in a device function: values are never references",
                ));
            }
        };
        let operand = self.expr(&unary.expr, cast_to)?;
        match (op, self.infer.look(operand.ty)) {
            (UnaryOp::Neg, _) => self.infer.require_signed(operand.ty, unary.op.span()),
            (UnaryOp::Not, Ok(Type::F32) | Err(Class::Float)) => {
                let message = "`!` needs a `bool` or an integer, found a float: compare it first";
                return Err(syn::Error::new_spanned(&unary.expr, message));
            }
            _ => {}
        }
        Ok(Expr { ty: operand.ty, kind: ExprKind::Unary(op, Box::new(operand)) })
    }

    fn binary(&mut self, binary: &syn::ExprBinary) -> Checked {
        reject::attributes(&binary.attrs)?;
        let op = binary_op(&binary.op)?;
        let left = self.expr(&binary.left, None)?;
        let right = self.expr(&binary.right, None)?;
        let symbol = op.symbol();
        let ty = if matches!(op, BinaryOp::And | BinaryOp::Or) {
            let who = format!("`{symbol}`");
            self.expect(left.ty, Type::Bool, &binary.left, &who)?;
            self.expect(right.ty, Type::Bool, &binary.right, &who)?;
            BOOL
        } else if !self.infer.unify(left.ty, right.ty) {
            return Err(syn::Error::new_spanned(
                binary,
                format!(
                    "`{symbol}` needs two operands of one type, found {} and {}: {}",
                    self.infer.describe(left.ty),
                    self.infer.describe(right.ty),
                    match (self.infer.look(left.ty), self.infer.look(right.ty)) {
                        (Ok(Type::F32), Err(Class::Int)) | (Err(Class::Int), Ok(Type::F32)) =>
                            "write the literal with a `.0`",
                        _ => "cast one of them with `as`",
                    }
                ),
            ));
        } else if op.is_comparison() {
            BOOL
        } else {
            let bits = matches!(op, BinaryOp::BitAnd | BinaryOp::BitOr | BinaryOp::BitXor);
            let accepted = match self.infer.look(left.ty) {
                Ok(Type::Bool) => bits,
                Ok(Type::F32) | Err(Class::Float) => !bits,
                _ => true,
            };
            if !accepted {
                let (found, needs) =
                    (self.infer.describe(left.ty), if bits { "bools or integers" } else { "numbers" });
                return Err(syn::Error::new_spanned(
                    binary,
                    format!("`{symbol}` needs {needs}, found {found}"),
                ));
            }
            left.ty
        };
        Ok(Expr { ty, kind: ExprKind::Binary(op, Box::new(left), Box::new(right)) })
    }

    fn cast(&mut self, cast: &syn::ExprCast) -> Checked {
        reject::attributes(&cast.attrs)?;
        let to = value_type(&cast.ty)?;
        let operand = self.expr(&cast.expr, Some(to))?;
        let allowed = match self.infer.look(operand.ty) {
            Ok(from) => from == to || can_cast(from, to),
            Err(_) => to != Type::Bool,
        };
        if !allowed {
            let advice = if to == Type::Bool { "compare it with `!= 0`" } else { "cast it to `i32` first" };
            let found = self.infer.describe(operand.ty);
            return Err(syn::Error::new_spanned(
                cast,
                format!("{found} cannot be cast to `{}`: {advice}", to.name()),
            ));
        }
        Ok(typed(to, ExprKind::Cast(Box::new(operand))))
    }

    /// The slice capture that `expr` names.
    pub(crate) fn slice(&self, expr: &syn::Expr) -> Option<usize> {
        let syn::Expr::Path(path) = expr else { return None };
        match self.find(path)? {
            Binding::Capture(id) if self.captures[id].ty.is_slice() => Some(id),
            _ => None,
        }
    }

    fn index(&mut self, index: &syn::ExprIndex) -> Checked {
        reject::attributes(&index.attrs)?;
        let Some(capture) = self.slice(&index.expr) else {
            if let Some(error) = reject::expression(&index.expr) {
                return Err(error);
            }
            return Err(syn::Error::new_spanned(
                &index.expr,
                "only a capture of type `&[f32]`, `&[i32]` or `&[u32]` can be indexed",
            ));
        };
        let at = self.expr(&index.index, None)?;
        self.expect(at.ty, Type::Usize, &index.index, "an index")?;
        Ok(typed(self.captures[capture].ty.element(), ExprKind::Index(capture, Box::new(at))))
    }
}

/// Whether Rust has `as` between two different types of device functions.
fn can_cast(from: Type, to: Type) -> bool {
    match (from, to) {
        (_, Type::Bool) => false,
        (Type::Bool, to) => to.is_int(),
        _ => true,
    }
}

/// The generic arguments of a path, if any segment has some.
pub(crate) fn path_arguments<'a>(segments: &[&'a syn::PathSegment]) -> Option<&'a syn::PathArguments> {
    segments.iter().map(|segment| &segment.arguments).find(|arguments| !arguments.is_none())
}

/// `f32::INFINITY` and its like.
fn constant(path: &syn::ExprPath) -> Checked {
    let segments: Vec<_> = path.path.segments.iter().collect();
    if let ([ty, name], None, None) = (segments.as_slice(), path_arguments(&segments), &path.qself)
        && let Some(ty) = Type::from_name(&ty.ident.to_string())
    {
        let kind = match (ty, name.ident.to_string().as_str()) {
            (Type::F32, "INFINITY") => Some(ExprKind::Float(f32::INFINITY)),
            (Type::F32, "NEG_INFINITY") => Some(ExprKind::Float(f32::NEG_INFINITY)),
            (Type::F32, "NAN") => Some(ExprKind::Float(f32::NAN)),
            (Type::F32, "MIN") => Some(ExprKind::Float(f32::MIN)),
            (Type::F32, "MAX") => Some(ExprKind::Float(f32::MAX)),
            (Type::F32, "EPSILON") => Some(ExprKind::Float(f32::EPSILON)),
            (ty, "MIN") => ty.int_range().map(|(low, _)| ExprKind::Int(low)),
            (ty, "MAX") => ty.int_range().map(|(_, high)| ExprKind::Int(high)),
            _ => None,
        };
        if let Some(kind) = kind {
            return Ok(typed(ty, kind));
        }
    }
    let name = reject::quoted(path).replace(' ', "");
    Err(syn::Error::new_spanned(
        path,
        format!(
            "`{name}` is not known in this device function: it sees its parameters, its `let`s and constants such \
             as `f32::INFINITY` and `i32::MAX`; pass anything else as a capture"
        ),
    ))
}

fn binary_op(op: &BinOp) -> syn::Result<BinaryOp> {
    Ok(match op {
        BinOp::Add(_) => BinaryOp::Add,
        BinOp::Sub(_) => BinaryOp::Sub,
        BinOp::Mul(_) => BinaryOp::Mul,
        BinOp::Div(_) => BinaryOp::Div,
        BinOp::Rem(_) => BinaryOp::Rem,
        BinOp::And(_) => BinaryOp::And,
        BinOp::Or(_) => BinaryOp::Or,
        BinOp::BitAnd(_) => BinaryOp::BitAnd,
        BinOp::BitOr(_) => BinaryOp::BitOr,
        BinOp::BitXor(_) => BinaryOp::BitXor,
        BinOp::Eq(_) => BinaryOp::Eq,
        BinOp::Ne(_) => BinaryOp::Ne,
        BinOp::Lt(_) => BinaryOp::Lt,
        BinOp::Le(_) => BinaryOp::Le,
        BinOp::Gt(_) => BinaryOp::Gt,
        BinOp::Ge(_) => BinaryOp::Ge,
        BinOp::Shl(_) | BinOp::Shr(_) => {
            return Err(syn::Error::new_spanned(
                op,
                "shifts are not supported in a device function: multiply or divide by the power of two",
            ));
        }
        _ => return Err(syn::Error::new_spanned(op, "this operator is not supported in a device function")),
    })
}
