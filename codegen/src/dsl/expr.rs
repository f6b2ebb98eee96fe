//! Integer expressions of declarations: constraints, budgets, launch grids, derived dimensions.

use proc_macro2::TokenStream;
use std::fmt;
use syn::spanned::Spanned;

/// An integer expression; conditions are 0 or 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// A literal.
    Int(i64),
    /// A parameter or a dimension.
    Name(String),
    /// A binary operation.
    Binary(Op, Box<Expr>, Box<Expr>),
    /// `ceil_div(a, b)`, `min(a, b)` or `max(a, b)`.
    Call(Function, Box<Expr>, Box<Expr>),
    /// `if c { a } else { b }`
    If(Box<Expr>, Box<Expr>, Box<Expr>),
}

/// Binary operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Lt,
    Le,
    Gt,
    Ge,
    Eq,
    Ne,
    And,
    Or,
}

/// Functions an expression can call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Function {
    CeilDiv,
    Min,
    Max,
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum EvalError {
    #[error("`{0}` has no value here")]
    Unknown(String),
    #[error("`{0}` divides by zero or overflows")]
    Arithmetic(String),
}

impl Op {
    pub(super) fn symbol(self) -> &'static str {
        match self {
            Op::Add => "+",
            Op::Sub => "-",
            Op::Mul => "*",
            Op::Div => "/",
            Op::Rem => "%",
            Op::Lt => "<",
            Op::Le => "<=",
            Op::Gt => ">",
            Op::Ge => ">=",
            Op::Eq => "==",
            Op::Ne => "!=",
            Op::And => "&&",
            Op::Or => "||",
        }
    }

    /// How tightly it binds.
    fn level(self) -> u8 {
        match self {
            Op::Or => 0,
            Op::And => 1,
            Op::Mul | Op::Div | Op::Rem => 4,
            Op::Add | Op::Sub => 3,
            _ => 2,
        }
    }

    pub(super) fn is_condition(self) -> bool {
        self.checked().is_none()
    }

    pub(super) fn is_logical(self) -> bool {
        matches!(self, Op::And | Op::Or)
    }

    /// The method of `i64` that an operation on numbers is.
    pub(super) fn checked(self) -> Option<&'static str> {
        Some(match self {
            Op::Add => "checked_add",
            Op::Sub => "checked_sub",
            Op::Mul => "checked_mul",
            Op::Div => "checked_div",
            Op::Rem => "checked_rem",
            _ => return None,
        })
    }

    pub(super) fn token(self) -> TokenStream {
        self.symbol().parse().expect("an operator is a token")
    }

    fn apply(self, a: i64, b: i64) -> Option<i64> {
        Some(match self {
            Op::Add => a.checked_add(b)?,
            Op::Sub => a.checked_sub(b)?,
            Op::Mul => a.checked_mul(b)?,
            Op::Div => a.checked_div(b)?,
            Op::Rem => a.checked_rem(b)?,
            Op::Lt => (a < b).into(),
            Op::Le => (a <= b).into(),
            Op::Gt => (a > b).into(),
            Op::Ge => (a >= b).into(),
            Op::Eq => (a == b).into(),
            Op::Ne => (a != b).into(),
            Op::And | Op::Or => unreachable!("short-circuit operators are evaluated by Expr::eval"),
        })
    }
}

/// `a / b` rounded up, for `b` above 0. `None` where it overflows or divides by zero.
pub fn ceil_div(a: i64, b: i64) -> Option<i64> {
    a.checked_add(b.checked_sub(1)?)?.checked_div(b)
}

impl Function {
    pub(super) fn name(self) -> &'static str {
        match self {
            Function::CeilDiv => "ceil_div",
            Function::Min => "min",
            Function::Max => "max",
        }
    }

    fn apply(self, a: i64, b: i64) -> Option<i64> {
        match self {
            Function::CeilDiv => ceil_div(a, b),
            Function::Min => Some(a.min(b)),
            Function::Max => Some(a.max(b)),
        }
    }
}

impl Expr {
    /// Whether the value is a condition (0 or 1).
    pub fn is_condition(&self) -> bool {
        matches!(self, Expr::Binary(op, ..) if op.is_condition())
    }

    /// The value, with names looked up by `value_of`.
    ///
    /// # Errors
    /// [`EvalError`] for a name without a value, an overflow or a division by zero.
    pub fn eval(&self, value_of: &dyn Fn(&str) -> Option<i64>) -> Result<i64, EvalError> {
        let arithmetic = |value: Option<i64>| value.ok_or_else(|| EvalError::Arithmetic(self.to_string()));
        match self {
            Expr::Int(value) => Ok(*value),
            Expr::Name(name) => value_of(name).ok_or_else(|| EvalError::Unknown(name.clone())),
            Expr::Binary(Op::And, a, b) => Ok(i64::from(a.eval(value_of)? != 0 && b.eval(value_of)? != 0)),
            Expr::Binary(Op::Or, a, b) => Ok(i64::from(a.eval(value_of)? != 0 || b.eval(value_of)? != 0)),
            Expr::Binary(op, a, b) => arithmetic(op.apply(a.eval(value_of)?, b.eval(value_of)?)),
            Expr::Call(function, a, b) => arithmetic(function.apply(a.eval(value_of)?, b.eval(value_of)?)),
            Expr::If(c, a, b) => (if c.eval(value_of)? != 0 { a } else { b }).eval(value_of),
        }
    }

    /// Puts numbers in the place of the names that have a value.
    pub(super) fn replace(&mut self, value_of: &dyn Fn(&str) -> Option<i64>) {
        match self {
            Expr::Int(_) => {}
            Expr::Name(name) => {
                if let Some(value) = value_of(name) {
                    *self = Expr::Int(value);
                }
            }
            Expr::Binary(_, a, b) | Expr::Call(_, a, b) => {
                a.replace(value_of);
                b.replace(value_of);
            }
            Expr::If(c, a, b) => {
                c.replace(value_of);
                a.replace(value_of);
                b.replace(value_of);
            }
        }
    }

    /// Every name in the expression, in order of appearance.
    pub fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.visit_names(&mut |name| {
            if !names.contains(&name) {
                names.push(name);
            }
        });
        names
    }

    fn visit_names<'a>(&'a self, visit: &mut impl FnMut(&'a str)) {
        match self {
            Expr::Int(_) => {}
            Expr::Name(name) => visit(name),
            Expr::Binary(_, a, b) | Expr::Call(_, a, b) => {
                a.visit_names(visit);
                b.visit_names(visit);
            }
            Expr::If(c, a, b) => {
                c.visit_names(visit);
                a.visit_names(visit);
                b.visit_names(visit);
            }
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Int(value) => write!(f, "{value}"),
            Expr::Name(name) => f.write_str(name),
            Expr::Binary(op, a, b) => {
                // As Rust's grammar binds: the right operand of an equal level needs its parentheses.
                let operand = |e: &Expr, least: u8| match e {
                    Expr::Binary(inner, ..) if inner.level() < least => format!("({e})"),
                    Expr::If(..) => format!("({e})"),
                    _ => e.to_string(),
                };
                // Comparisons do not chain, so neither side may be one.
                let left = op.level() + u8::from(op.level() == Op::Eq.level());
                write!(f, "{} {} {}", operand(a, left), op.symbol(), operand(b, op.level() + 1))
            }
            Expr::Call(function, a, b) => write!(f, "{}({a}, {b})", function.name()),
            Expr::If(c, a, b) => write!(f, "if {c} {{ {a} }} else {{ {b} }}"),
        }
    }
}

impl TryFrom<&syn::Expr> for Expr {
    type Error = syn::Error;

    fn try_from(expr: &syn::Expr) -> syn::Result<Self> {
        Expr::at_depth(expr, 1)
    }
}

/// Deep enough for any formula by hand, shallow enough for every stack that later walks the tree.
const MAX_DEPTH: usize = 100;

impl Expr {
    fn at_depth(expr: &syn::Expr, depth: usize) -> syn::Result<Self> {
        if depth > MAX_DEPTH {
            let message =
                format!("expressions may nest {MAX_DEPTH} deep: derive a part of this one with `let`");
            return Err(syn::Error::new(expr.span(), message));
        }
        let part = |expr: &syn::Expr| Expr::at_depth(expr, depth + 1);
        let unsupported = |what: &str| {
            Err(syn::Error::new(
                expr.span(),
                format!(
                    "{what}: declarations have integers, names, + - * / %, comparisons, && ||, if/else, ceil_div, min and max"
                ),
            ))
        };
        match expr {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Int(int), .. }) => {
                let value = int.base10_parse().ok().filter(|_| int.suffix().is_empty());
                value.map(Expr::Int).ok_or_else(|| {
                    let message = format!("{int} is no number here: write one of 64 bits, without a suffix");
                    syn::Error::new(int.span(), message)
                })
            }
            syn::Expr::Path(path) => match path.path.get_ident() {
                Some(ident) => Ok(Expr::Name(ident.to_string())),
                None => unsupported("a path is no value here"),
            },
            syn::Expr::Paren(paren) => part(&paren.expr),
            syn::Expr::Group(group) => part(&group.expr),
            syn::Expr::Binary(binary) => {
                let op = match binary.op {
                    syn::BinOp::Add(_) => Op::Add,
                    syn::BinOp::Sub(_) => Op::Sub,
                    syn::BinOp::Mul(_) => Op::Mul,
                    syn::BinOp::Div(_) => Op::Div,
                    syn::BinOp::Rem(_) => Op::Rem,
                    syn::BinOp::Lt(_) => Op::Lt,
                    syn::BinOp::Le(_) => Op::Le,
                    syn::BinOp::Gt(_) => Op::Gt,
                    syn::BinOp::Ge(_) => Op::Ge,
                    syn::BinOp::Eq(_) => Op::Eq,
                    syn::BinOp::Ne(_) => Op::Ne,
                    syn::BinOp::And(_) => Op::And,
                    syn::BinOp::Or(_) => Op::Or,
                    _ => return unsupported("this operator is not supported"),
                };
                let (left, right) = (part(&binary.left)?, part(&binary.right)?);
                Ok(Expr::Binary(op, left.into(), right.into()))
            }
            syn::Expr::Call(call) => {
                let name = match &*call.func {
                    syn::Expr::Path(path) => path.path.get_ident().map(ToString::to_string),
                    _ => None,
                };
                let function = match name.as_deref() {
                    Some("ceil_div") => Function::CeilDiv,
                    Some("min") => Function::Min,
                    Some("max") => Function::Max,
                    _ => return unsupported("this function is not known"),
                };
                let [a, b] = call.args.iter().collect::<Vec<_>>()[..] else {
                    return unsupported("the function takes two arguments");
                };
                Ok(Expr::Call(function, part(a)?.into(), part(b)?.into()))
            }
            syn::Expr::If(branch) => {
                let (Some(then), Some(other)) =
                    (tail(&branch.then_branch), branch.else_branch.as_ref().map(|(_, other)| &**other))
                else {
                    return unsupported("an `if` needs one expression in each branch and an `else`");
                };
                let other = match other {
                    syn::Expr::Block(block) => match tail(&block.block) {
                        Some(other) => other,
                        None => return unsupported("a branch is one expression"),
                    },
                    other => other,
                };
                Ok(Expr::If(part(&branch.cond)?.into(), part(then)?.into(), part(other)?.into()))
            }
            syn::Expr::Assign(_) => unsupported("`=` compares nothing, write `==`"),
            _ => unsupported("this expression is not supported"),
        }
    }
}

/// The block's only expression.
fn tail(block: &syn::Block) -> Option<&syn::Expr> {
    match &block.stmts[..] {
        [syn::Stmt::Expr(expr, None)] => Some(expr),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Expr {
        Expr::try_from(&syn::parse_str::<syn::Expr>(text).unwrap()).unwrap()
    }

    #[test]
    fn evaluates() {
        let value_of = |name: &str| match name {
            "D" => Some(128),
            "n" => Some(65),
            _ => None,
        };
        for (text, expected) in [
            ("2 * D * (64 + 2 * 64)", 49152),
            ("ceil_div(n, 64)", 2),
            ("min(n, D) + max(1, 2)", 67),
            ("D % 16 == 0 && n > 64", 1),
            ("n < 0 || D != 128", 0),
            ("if n > 64 { 7 } else { 9 }", 7),
        ] {
            let expr = parse(text);
            assert_eq!(expr.eval(&value_of), Ok(expected), "{text}");
            assert_eq!(parse(&expr.to_string()), expr, "{text} prints as it parses");
        }
        assert_eq!(parse("x + 1").eval(&value_of), Err(EvalError::Unknown("x".into())));
        assert_eq!(parse("1 / (n - 65)").eval(&value_of), Err(EvalError::Arithmetic("1 / (n - 65)".into())));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for text in ["a << 1", "f(1)", "a.b", "a::b", "[1]", "if a { 1 }", "max(1)", "1.5"] {
            let expr = syn::parse_str::<syn::Expr>(text).unwrap();
            assert!(Expr::try_from(&expr).is_err(), "{text}");
        }
    }
}
