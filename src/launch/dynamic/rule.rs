//! Expressions of a declaration, and the values of their names.

use crate::codegen::dsl::Expr;
use crate::launch::BindError;
use smallvec::SmallVec;

/// An expression of the declaration, and as it is shown.
pub(super) struct Rule {
    pub(super) expr: &'static Expr,
    pub(super) text: &'static str,
}

/// What the names in expressions stand for.
pub(super) struct Values<'a> {
    pub(super) kernel: &'static str,
    pub(super) constant: &'a dyn Fn(&str) -> Option<i64>,
    pub(super) dims: SmallVec<[(&'static str, i64); 16]>,
}

impl Values<'_> {
    pub(super) fn get(&self, name: &str) -> Option<i64> {
        let dim = self.dims.iter().find(|(known, _)| *known == name).map(|&(_, value)| value);
        dim.or_else(|| (self.constant)(name))
    }

    /// The values that an error shows.
    pub(super) fn of(&self, expr: &'static Expr) -> Vec<(&'static str, i64)> {
        expr.names().into_iter().filter_map(|name| Some((name, self.get(name)?))).collect()
    }
}

impl Rule {
    pub(super) fn new(expr: &'static Expr) -> Self {
        Rule { expr, text: expr.to_string().leak() }
    }

    pub(super) fn eval(&self, values: &Values<'_>) -> Option<i64> {
        self.expr.eval(&|name| values.get(name)).ok()
    }

    pub(super) fn value(&self, values: &Values<'_>) -> Result<i64, BindError> {
        self.eval(values).ok_or_else(|| BindError::no_value(values.kernel, self.text, &values.of(self.expr)))
    }
}
