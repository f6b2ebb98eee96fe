"""Python's operators on symbols, with Python's meaning.

An operator between an integer and a float works on f32, as in PyTorch; `/` always does. `//` and `%` of integers round down,
as Python's do and Rust's do not.
"""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from typing import Callable, NoReturn

from .values import (
    AND, BIT_AND, BIT_OR, BIT_XOR, BOOL, CAST, COMPARISON, F32, I32, I32_MAX, IF, OR, PRODUCT, SUM, UNARY,
    Static, Sym, choice, float_literal, int_literal, method, shown, wrap,
)  # fmt: skip
from .walker import Walker

_SYMBOLS: dict[type, tuple[str, int]] = {
    ast.Add: ("+", SUM),
    ast.Sub: ("-", SUM),
    ast.Mult: ("*", PRODUCT),
    ast.BitAnd: ("&", BIT_AND),
    ast.BitOr: ("|", BIT_OR),
    ast.BitXor: ("^", BIT_XOR),
}
_COMPARISONS: dict[type, str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}

# Bools joined by `&&` or `||` without parentheses.
_LONGEST_CHAIN = 16


class Arithmetic:
    """Operators for the walk, which knows where errors are and where `let`s go."""

    def __init__(self, walk: Walker) -> None:
        self.walk = walk

    # Conversions

    def to_f32(self, value: Sym) -> Sym:
        """The value as an f32; a bool is 0 or 1."""
        if value.ty == F32:
            return value
        if value.plain is not None:
            return replace(float_literal(int(value.plain)), weak=value.weak)
        text = wrap(value, CAST)
        text = f"{text} as i32 as f32" if value.ty == BOOL else f"{text} as f32"
        return Sym(F32, text, CAST, value.nonneg or value.ty == BOOL, weak=value.weak)

    def to_i32(self, value: Sym) -> Sym:
        """The value as an i32: a float loses its fraction and saturates, a bool is 0 or 1."""
        if value.ty == I32:
            return value
        most = 1 if value.ty == BOOL else I32_MAX + 1
        return Sym(I32, f"{wrap(value, CAST)} as i32", CAST, value.nonneg or value.ty == BOOL, most, weak=value.weak)

    def to_bool(self, value: Sym) -> Sym:
        """Whether the value is not 0."""
        if value.ty == BOOL:
            return value
        zero = "0.0" if value.ty == F32 else "0"
        return Sym(BOOL, f"{wrap(value, BIT_OR)} != {zero}", COMPARISON, weak=value.weak)

    def convert(self, value: Sym, ty: str) -> Sym:
        """The value as another type."""
        return {F32: self.to_f32, I32: self.to_i32, BOOL: self.to_bool}[ty](value)

    def unify(self, left: Sym, right: Sym) -> tuple[Sym, Sym]:
        """Both as the wider of their types: bool, i32, f32."""
        order = [BOOL, I32, F32]
        ty = max(left.ty, right.ty, key=order.index)
        return self.convert(left, ty), self.convert(right, ty)

    # Operators

    def infix(
        self, left: Sym, right: Sym, symbol: str, binds: int, ty: str, nonneg: bool = False, most: int = I32_MAX + 1
    ) -> Sym:
        """``left symbol right``, of one type."""
        # Literals show their type to one another; two of them would show nothing.
        plain = left.plain is None or right.plain is None
        left_text = wrap(left, binds, plain=plain)
        # `a as i32 < b` would begin type arguments.
        if symbol.startswith("<") and left_text.endswith((" as i32", " as f32", " as usize")):
            left_text = f"({left_text})"
        return Sym(ty, f"{left_text} {symbol} {wrap(right, binds + 1, plain=plain)}", binds, nonneg, most)

    def binary(self, op: ast.operator, left: Sym, right: Sym, node: ast.AST) -> Sym:
        """``left op right``."""
        result = self._binary(op, left, right, node)
        return replace(result, weak=left.weak and right.weak, narrow=self._narrow(op, left, right, node))

    def _narrow(self, op: ast.operator, left: Sym, right: Sym, node: ast.AST) -> str | None:
        """The narrow integer type of a result; its arithmetic is refused, since it wraps where i32's does not."""
        for one, other in ((left, right), (right, left)):
            # Beside a tensor of int32, or a float, the result is one too. Python's numbers take the tensor's type.
            if one.narrow is None or other.ty == F32 or (other.ty == I32 and not other.weak and other.narrow is None):
                continue
            if type(op) in (ast.BitAnd, ast.BitOr, ast.BitXor):
                return one.narrow
            if type(op) is not ast.Div:
                self._wraps(one, node)
        return None

    def _wraps(self, value: Sym, node: ast.AST) -> NoReturn:
        self.walk.fail(node, f"the arithmetic of {value.narrow} wraps: convert it first, with `.int()` for example")

    def _binary(self, op: ast.operator, left: Sym, right: Sym, node: ast.AST) -> Sym:
        kind = type(op)
        if kind in (ast.BitAnd, ast.BitOr, ast.BitXor):
            if F32 in (left.ty, right.ty):
                self.walk.fail(node, "`&`, `|` and `^` take bools or integers, found a float: compare it first")
            left, right = self.unify(left, right)
            symbol, binds = _SYMBOLS[kind]
            if not (left.nonneg and right.nonneg):
                return self.infix(left, right, symbol, binds, left.ty)
            bits = max(left.most, right.most).bit_length()
            return self.infix(left, right, symbol, binds, left.ty, True, (1 << bits) - 1)
        if left.ty == right.ty == BOOL:
            if kind is ast.Mult:
                return self.infix(left, right, "&", BIT_AND, BOOL)
            reason = "both operands are bools: combine them with `&`, `|`, `and` or `or`, or cast them with `int(…)`"
            self.walk.fail(node, reason)
        if kind is ast.Div:
            left, right = self.to_f32(left), self.to_f32(right)
            return self.infix(left, right, "/", PRODUCT, F32, left.nonneg and right.nonneg)
        left, right = self.unify(left, right)
        if kind is ast.FloorDiv:
            return self._floor_divide(left, right)
        if kind is ast.Mod:
            return self.modulo(left, right)
        if kind in (ast.Add, ast.Sub, ast.Mult):
            symbol, binds = _SYMBOLS[kind]
            nonneg, most = self._range(kind, left, right)
            return self.infix(left, right, symbol, binds, left.ty, nonneg, most)
        if kind in (ast.LShift, ast.RShift):
            self.walk.fail(node, "shifts are not supported: multiply with, or divide (`//`) by, the power of two")
        self.walk.fail(node, "this operator is not supported: use + - * / // % ** & | ^ and comparisons")

    def _range(self, kind: type[ast.operator], left: Sym, right: Sym) -> tuple[bool, int]:
        """Whether a sum, difference or product is known not to be negative, and an i32's largest magnitude."""
        nonneg = left.nonneg and right.nonneg
        if left.ty == F32:
            return nonneg and kind is not ast.Sub, I32_MAX + 1
        if kind is ast.Sub and nonneg:
            return False, max(left.most, right.most)
        most = left.most * right.most if kind is ast.Mult else left.most + right.most
        # Beyond an i32 it wraps: its sign tells nothing.
        return (nonneg and kind is not ast.Sub, most) if most <= I32_MAX else (False, I32_MAX + 1)

    def _floor_divide(self, left: Sym, right: Sym) -> Sym:
        if left.ty == F32:
            return self._floor_divide_floats(left, right)
        if left.nonneg and right.nonneg:
            return self.infix(left, right, "/", PRODUCT, I32, True, left.most)
        left, right = self.walk.named(left, "a"), self.walk.named(right, "b")
        _, below = self._rest(left, right)
        quotient = self.walk.named(self.infix(left, right, "/", PRODUCT, I32), "quotient")
        lower = self.infix(quotient, int_literal(1), "-", SUM, I32)
        return self.walk.named(replace(choice(below, lower, quotient), most=left.most), "floor")

    def _floor_divide_floats(self, left: Sym, right: Sym) -> Sym:
        """What Python and torch compute: from the remainder, since a quotient may round up to the next integer."""
        known = right.plain is not None and float(right.plain) != 0
        left, right = self.walk.named(left, "a"), self.walk.named(right, "b")
        rest, below = self._rest(left, right)
        towards_zero = self.infix(self.infix(left, rest, "-", SUM, F32), right, "/", PRODUCT, F32)
        towards_zero = self.walk.named(towards_zero, "towards_zero")
        lower = self.infix(towards_zero, float_literal(1.0), "-", SUM, F32)
        exact = self.walk.named(choice(below, lower, towards_zero), "exact")
        floor = self.walk.named(Sym(F32, method(exact, "floor")), "floor")
        # The division may have rounded down from a whole number.
        above = self.infix(floor, float_literal(1.0), "+", SUM, F32)
        result = choice(Sym(BOOL, f"{exact.text} - {floor.text} > 0.5"), above, floor)
        if known:
            return result
        # By zero: an infinity or NaN, whose floor it is.
        quotient = Sym(F32, method(self.infix(left, right, "/", PRODUCT, F32), "floor"))
        return choice(Sym(BOOL, f"{wrap(right, BIT_OR)} == 0.0"), quotient, result)

    def modulo(self, left: Sym, right: Sym) -> Sym:
        """Python's ``%``: the remainder has the sign of ``right``."""
        if left.ty == I32 and left.nonneg and right.nonneg:
            return self.infix(left, right, "%", PRODUCT, I32, True, min(left.most, right.most))
        right = self.walk.named(right, "divisor")
        rest, below = self._rest(left, right)
        result = choice(below, self.infix(rest, right, "+", SUM, left.ty), rest)
        result.nonneg, result.most = right.nonneg, right.most
        return self.walk.named(result, "modulo")

    def _rest(self, left: Sym, right: Sym) -> tuple[Sym, Sym]:
        """Rust's remainder, and whether the quotient that rounds down is another one: where the signs differ."""
        rest = self.walk.named(self.infix(left, right, "%", PRODUCT, left.ty), "rest")
        zero = "0.0" if left.ty == F32 else "0"
        below = f"{rest.text} < {zero}"
        if not right.nonneg:
            below = f"{rest.text} != {zero} && ({below}) != ({wrap(right, SUM)} < {zero})"
        return rest, Sym(BOOL, below)

    def power(self, left: Sym, exponent: Static | Sym, node: ast.AST) -> Sym:
        """``left ** exponent``: whole exponents that do not depend on the position, and 0.5."""
        number = exponent.obj if isinstance(exponent, Static) else None
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            reason = "an exponent must be a number that does not depend on the position: write `torch.exp2(y * torch.log2(x))`"
            self.walk.fail(node, reason + " where x is positive")
        if not abs(number) < 2**31:
            self.walk.fail(node, f"{shown(number)} is no exponent of a device function: it must fit an i32")
        if isinstance(number, float) and not number.is_integer():
            base = self.to_f32(left)
            if number == 0.5:
                return Sym(F32, method(base, "sqrt"), nonneg=True)
            if number == -0.5:
                return self.infix(float_literal(1.0), Sym(F32, method(base, "sqrt")), "/", PRODUCT, F32)
            self.walk.fail(node, "an exponent must be whole, or 0.5: write `torch.exp2(y * torch.log2(x))` where x is positive")
        if left.ty != F32 and isinstance(number, int) and 0 <= number <= 16 and exponent.literal:
            if left.narrow:
                self._wraps(left, node)
            if number == 0:
                return int_literal(1)
            base = self.walk.named(self.to_i32(left), "base")
            text, most = " * ".join([base.text] * number), base.most**number
            nonneg = most <= I32_MAX and (base.nonneg or number % 2 == 0)
            return Sym(I32, text, PRODUCT if number > 1 else base.binds, nonneg, min(most, I32_MAX + 1))
        if left.ty != F32 and isinstance(number, int) and not (exponent.literal and number < 0):
            self.walk.fail(node, "an integer to this power may not fit an i32: write `float(x) ** n`")
        if exponent.literal or isinstance(number, float):
            whole = int_literal(int(number))
        else:
            whole = self.walk.symbol(exponent, node)
        return Sym(F32, method(self.to_f32(left), "powi", whole))

    def power_of(self, base: Static, exponent: Sym, node: ast.AST) -> Sym:
        """``base ** exponent`` of a positive number ``base``."""
        number = base.obj
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < math.inf:
            self.walk.fail(node, "this base must be a positive number: write `torch.exp2(y * torch.log2(x))`")
        if isinstance(number, int) and exponent.ty != F32:
            whole = f"{number}.0" if number < 2**31 else "float(base)"
            reason = f"a power of two integers may not fit an i32: write `{whole} ** x`, or `torch.exp2(x)` for powers of 2"
            self.walk.fail(node, reason)
        exponent = self.to_f32(exponent)
        if number != 2:
            log = Static(math.log2(number), f"log2_{base.name}", ("log2", base.origin), base.literal)
            exponent = self.infix(exponent, self.walk.symbol(log, node), "*", PRODUCT, F32)
        return Sym(F32, method(exponent, "exp2"), nonneg=True)

    def unary(self, op: ast.unaryop, value: Sym, node: ast.AST) -> Sym:
        """``op value``."""
        if isinstance(op, ast.Not):
            value = self.to_bool(value)
            return Sym(BOOL, f"!{wrap(value, UNARY)}", UNARY, weak=True)
        if isinstance(op, ast.Invert):
            if value.ty == F32:
                self.walk.fail(node, "`~` takes a bool or an integer, found a float: compare it first")
            if value.ty == BOOL and value.weak:
                self.walk.fail(node, "`~` of a Python bool is a number: use `not`")
            if value.narrow and value.narrow.startswith("u"):
                self.walk.fail(node, f"`~` of {value.narrow} stays above 0: convert it first, with `.int()` for example")
            most = min(value.most + 1, I32_MAX + 1)
            return Sym(value.ty, f"!{wrap(value, UNARY)}", UNARY, most=most, weak=value.weak, narrow=value.narrow)
        if value.narrow and isinstance(op, ast.USub):
            self._wraps(value, node)
        if value.ty == BOOL:
            self.walk.fail(node, "a sign needs a number, found a bool: cast it with `int(…)`")
        if isinstance(op, ast.UAdd):
            return value
        # `-x as f32` negates first, and so does this.
        return Sym(value.ty, f"-{wrap(value, UNARY)}", UNARY, most=value.most, weak=value.weak)

    def compare(self, op: ast.cmpop, left: Sym, right: Sym, node: ast.AST) -> Sym:
        """``left op right`` as a bool."""
        symbol = _COMPARISONS.get(type(op))
        if symbol is None:
            self.walk.fail(node, "`in` and `is` are for tuples of numbers and for None: compare with == != < <= > >=")
        if left.ty == right.ty == BOOL and symbol not in ("==", "!="):
            left, right = self.to_i32(left), self.to_i32(right)
        weak = left.weak and right.weak
        left, right = self.unify(left, right)
        # Comparisons do not chain in Rust: both sides bind tighter.
        plain = left.plain is None or right.plain is None
        left_text, right_text = wrap(left, BIT_OR, plain=plain), wrap(right, BIT_OR, plain=plain)
        if symbol.startswith("<") and left_text.endswith((" as i32", " as f32", " as usize")):
            left_text = f"({left_text})"
        return Sym(BOOL, f"{left_text} {symbol} {right_text}", COMPARISON, weak=weak)

    def all_of(self, values: list[Sym], symbol: str = "&&") -> Sym:
        """The bools joined by ``&&`` or ``||``; Python binds them by the same rule."""
        binds = AND if symbol == "&&" else OR
        if len(values) == 1:
            return values[0]
        weak = all(value.weak for value in values)
        if len(values) > _LONGEST_CHAIN:
            # A chain nests as deep as it is long.
            values = [
                replace(self.all_of(values[at : at + _LONGEST_CHAIN], symbol), binds=IF)
                for at in range(0, len(values), _LONGEST_CHAIN)
            ]  # fmt: skip
        return Sym(BOOL, f" {symbol} ".join(wrap(value, binds) for value in values), binds, weak=weak)

    def select(self, condition: Sym, yes: Sym, no: Sym) -> Sym:
        """``yes if condition else no``."""
        tensors = yes.tensors | no.tensors
        yes, no = self.unify(yes, no)
        return replace(choice(self.to_bool(condition), yes, no), tensors=tensors)

    def call(self, name: str, value: Sym, *, nonneg: bool = False) -> Sym:
        """A method of f32."""
        return Sym(F32, method(self.to_f32(value), name), nonneg=nonneg)

    def of_floats(self, op: Callable[[], ast.operator], left: Sym, right: Sym, node: ast.AST) -> Sym:
        """An operator on floats."""
        return self.binary(op(), self.to_f32(left), self.to_f32(right), node)

