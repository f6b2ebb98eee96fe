//! Expressions as CUDA, for values that [`Expr::eval`] has found to exist.

use super::expr::{Expr, Function};

impl Expr {
    /// In 64 bits, as the host computes; a name alone as `name_of` writes it.
    pub(crate) fn to_cuda(&self, name_of: &dyn Fn(&str) -> String) -> String {
        match self {
            Expr::Name(name) => name_of(name),
            _ => self.to_long(name_of),
        }
    }

    fn to_long(&self, name_of: &dyn Fn(&str) -> String) -> String {
        let long = |expr: &Expr| expr.to_long(name_of);
        match self {
            Expr::Int(value) => format!("{value}ll"),
            Expr::Name(name) => format!("static_cast<long long>({})", name_of(name)),
            Expr::Binary(op, a, b) if op.is_condition() => {
                format!("({} {} {} ? 1ll : 0ll)", long(a), op.symbol(), long(b))
            }
            Expr::Binary(op, a, b) => format!("({} {} {})", long(a), op.symbol(), long(b)),
            // A function, so that each operand is written once, however deep they nest.
            Expr::Call(Function::CeilDiv, a, b) => {
                let ceil_div = "[](long long a, long long b) { return (a + (b - 1)) / b; }";
                format!("{ceil_div}({}, {})", long(a), long(b))
            }
            Expr::Call(function, a, b) => format!("{}({}, {})", function.name(), long(a), long(b)),
            Expr::If(c, a, b) => format!("({} ? {} : {})", long(c), long(a), long(b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuda(text: &str) -> String {
        let expr = Expr::try_from(&syn::parse_str::<syn::Expr>(text).unwrap()).unwrap();
        expr.to_cuda(&|name| format!("p.{name}"))
    }

    #[test]
    fn products_of_32_bit_members_are_of_64_bits() {
        let [a, b] = ["static_cast<long long>(p.a)", "static_cast<long long>(p.b)"];
        for (text, expected) in [
            ("a", "p.a".to_owned()),
            ("a * b / 4", format!("(({a} * {b}) / 4ll)")),
            ("(a < b) + 1", format!("(({a} < {b} ? 1ll : 0ll) + 1ll)")),
            (
                "if a && b { min(a, 2) } else { b }",
                format!("(({a} && {b} ? 1ll : 0ll) ? min({a}, 2ll) : {b})"),
            ),
        ] {
            assert_eq!(cuda(text), expected, "{text}");
        }
    }

    #[test]
    fn the_text_grows_with_the_expression() {
        let nested = |depth: usize| "ceil_div(a, ".repeat(depth) + "b" + &")".repeat(depth);
        let [some, more] = [45, 90].map(|depth| cuda(&nested(depth)).len());
        assert!(more < 2 * some, "{some} and {more} characters");
    }
}
