"""What the functions that may be called compute. Each takes its arguments in the order of its declared parameters."""

from __future__ import annotations

import ast
import math
from dataclasses import replace
from typing import Any, Callable

from .arrays import is_array, is_tensor, scalar
from .formulas import GELU_TANH
from .values import (
    BOOL, F32, I32, I32_MAX, IF, PRODUCT, ElementType, Static, Sym, Tup, another, choice, float_literal, method, shown,
)  # fmt: skip
from .walker import Walker

Handler = Callable[..., Any]

# The most numbers that `min` and `max` compare.
MOST_NUMBERS = 256


def f32(name: str, *, nonneg: bool = False) -> Handler:
    """A method of f32."""
    return lambda walk, node, x: walk.do.call(name, walk.symbol(x, node), nonneg=nonneg)


def operator(op: type[ast.operator], *, floats: bool = False) -> Handler:
    """A binary operator by its name; ``floats`` converts both sides first."""

    def handler(walk: Walker, node: ast.AST, left: Any, right: Any) -> Any:
        if floats:
            left, right = (walk.do.to_f32(walk.symbol(side, node)) for side in (left, right))
        return walk.binary(op(), left, right, node)

    return handler


def comparison(op: type[ast.cmpop]) -> Handler:
    """A comparison by its name."""
    return lambda walk, node, left, right: walk.do.compare(op(), walk.symbol(left, node), walk.symbol(right, node), node)


def logical(symbol: str) -> Handler:
    """``&&``, ``||`` or ``!=`` of whether numbers are 0."""

    def handler(walk: Walker, node: ast.AST, left: Any, right: Any) -> Sym:
        values = [walk.do.to_bool(walk.symbol(side, node)) for side in (left, right)]
        if symbol == "!=":
            return walk.do.compare(ast.NotEq(), *values, node)
        return walk.do.all_of(values, symbol)

    return handler


def unary(op: type[ast.unaryop]) -> Handler:
    """A prefix operator by its name."""
    return lambda walk, node, x: walk.do.unary(op(), walk.symbol(x, node), node)


def logical_not(walk: Walker, node: ast.AST, x: Any) -> Sym:
    """``torch.logical_not``, a bool of torch, not of Python."""
    return replace(walk.do.unary(ast.Not(), walk.symbol(x, node), node), weak=False)


def extreme(walk: Walker, name: str, left: Sym, right: Sym) -> Sym:
    """The smaller or larger of two numbers; a number rather than NaN."""
    left, right = walk.do.unify(left, right)
    if left.ty == BOOL:
        return walk.do.all_of([left, right], "&&" if name == "min" else "||")
    if left.plain is not None:
        left, right = right, left
    some = left.nonneg or right.nonneg if name == "max" else left.nonneg and right.nonneg
    narrow = left.narrow if left.narrow == right.narrow else None
    most = min(left.most, right.most) if name == "min" and some else max(left.most, right.most)
    return Sym(left.ty, method(left, name, right), nonneg=some, most=most, weak=left.weak and right.weak, narrow=narrow)


def pair(name: str) -> Handler:
    """``torch.minimum`` and its like."""
    return lambda walk, node, left, right: extreme(walk, name, walk.symbol(left, node), walk.symbol(right, node))


def extreme_of_tensors(name: str) -> Handler:
    """``torch.max(a, b)``, which is another function with a number as its second argument."""

    def handler(walk: Walker, node: ast.AST, left: Any, right: Any) -> Sym:
        if isinstance(right, Static) and not is_array(right.obj):
            walk.fail(node, f"a number is a dimension here: write `torch.{name}imum`, or `clamp`, to compare with it")
        return pair(name)(walk, node, left, right)

    return handler


def extreme_of(name: str) -> Handler:
    """Python's ``min`` and ``max``."""

    def handler(walk: Walker, node: ast.AST, *values: Any) -> Sym:
        if len(values) == 1:
            values = tuple(walk.items(values[0], node))
        if len(values) < 2:
            walk.fail(node, f"`{name}` takes two or more numbers")
        # What is known now is compared now, where its value is in the text anyway.
        literal = [v for v in values if isinstance(v, Static) and v.literal and isinstance(v.obj, (int, float))]
        if len(literal) > 1 and not any(math.isnan(v.obj) for v in literal):
            best = {"min": min, "max": max}[name](v.obj for v in literal)
            known = {id(v) for v in literal}
            values = (*(v for v in values if id(v) not in known), Static.of(best))
        if len(values) > MOST_NUMBERS:
            walk.fail(node, f"`{name}` of {len(values)} numbers: at most {MOST_NUMBERS}, or compute it outside of the function")
        result, *others = (walk.symbol(value, node) for value in values)
        # Python gives one of the numbers itself.
        tensors = result.tensors.union(*(other.tensors for other in others))
        for at, other in enumerate(others, start=1):
            result = extreme(walk, name, result, other)
            # A long chain of calls would nest too deep.
            result = walk.named(result, name) if at % 16 == 0 else result
        return replace(result, tensors=tensors)

    return handler


def clamp(walk: Walker, node: ast.AST, x: Any, low: Any, high: Any, low_: Any = None, high_: Any = None) -> Sym:
    """``torch.clamp``, and ``numpy.clip`` with its two pairs of names."""
    result, bounds = walk.symbol(x, node), []
    for name, bound in (("max", low or low_), ("min", high or high_)):
        if bound is not None and not (isinstance(bound, Static) and bound.obj is None):
            bounds.append((name, bound))
    if not bounds:
        walk.fail(node, "`clamp` takes `min`, `max` or both")
    for name, bound in bounds:
        result = extreme(walk, name, result, walk.symbol(bound, node))
    return another(result, weak=False)


def where(walk: Walker, node: ast.AST, condition: Any, yes: Any, no: Any) -> Sym:
    """``torch.where`` of single numbers."""
    chosen = walk.do.select(walk.symbol(condition, node), walk.symbol(yes, node), walk.symbol(no, node))
    return another(chosen, weak=False)


def where_method(walk: Walker, node: ast.AST, x: Any, condition: Any, other: Any) -> Sym:
    """``x.where(condition, other)``."""
    return where(walk, node, condition, x, other)


def absolute(walk: Walker, node: ast.AST, x: Any) -> Sym:
    """``abs``; of a bool as of 0 and 1."""
    x = walk.symbol(x, node)
    if x.ty == BOOL:
        x = walk.do.to_i32(x)
    # -2³¹ has no opposite.
    return Sym(x.ty, method(x, "abs"), nonneg=x.ty == F32 or x.most <= I32_MAX, most=x.most, weak=x.weak, narrow=x.narrow)


def rounding(name: str, *, whole: bool) -> Handler:
    """``floor`` and ``ceil``: of integers themselves. ``whole``: the result is an integer, as in ``math``."""

    def handler(walk: Walker, node: ast.AST, x: Any) -> Sym:
        x = walk.symbol(x, node)
        if x.ty != F32:
            return another(walk.do.to_i32(x), weak=whole)
        result = walk.do.call(name, x)
        return replace(walk.do.to_i32(result), weak=True) if whole else result

    return handler


def trunc(walk: Walker, node: ast.AST, x: Any) -> Sym:
    """Towards 0."""
    x = walk.symbol(x, node)
    if x.ty != F32:
        return another(walk.do.to_i32(x))
    x = walk.named(x, "x")
    return choice(Sym(BOOL, f"{x.text} < 0.0"), walk.do.call("ceil", x), walk.do.call("floor", x))


def sign(walk: Walker, node: ast.AST, x: Any) -> Sym:
    """-1, 0 or 1; 0 of NaN, as in torch."""
    x = walk.symbol(x, node)
    if x.ty == BOOL:
        return another(x)
    x = walk.named(x, "x")
    zero, one = ("0.0", "1.0f32") if x.ty == F32 else ("0", "1i32")
    last = "0.0f32" if x.ty == F32 else "0i32"
    return Sym(x.ty, f"if {x.text} > {zero} {{ {one} }} else if {x.text} < {zero} {{ -{one} }} else {{ {last} }}", IF)


def np_sign(walk: Walker, node: ast.AST, x: Any) -> Sym:
    """numpy's sign of NaN is NaN."""
    x = walk.named(walk.symbol(x, node), "x")
    signed = sign(walk, node, x)
    return signed if x.ty != F32 else choice(Sym(BOOL, f"{x.text} != {x.text}"), x, signed)


def square(walk: Walker, node: ast.AST, x: Any) -> Sym:
    """``x * x``, of integers as an integer."""
    x = walk.symbol(x, node)
    x = walk.named(walk.do.to_i32(x) if x.ty == BOOL else x, "x")
    result = walk.do.binary(ast.Mult(), x, x, node)
    return replace(result, nonneg=x.ty == F32 or result.most <= I32_MAX)


def relu(walk: Walker, node: ast.AST, x: Any) -> Sym:
    """The larger of x and 0; its derivative at 0 is 0, as torch's."""
    x = walk.symbol(x, node)
    if x.ty != F32:
        return extreme(walk, "max", walk.do.to_i32(x), Sym(I32, "0i32", nonneg=True, plain="0"))
    x = walk.named(x, "x")
    return replace(choice(Sym(BOOL, f"{x.text} <= 0.0"), float_literal(0.0), x), nonneg=True)


def power(walk: Walker, node: ast.AST, base: Any, exponent: Any) -> Any:
    """``base ** exponent``."""
    return walk.power(base, exponent, node)


def float_power(walk: Walker, node: ast.AST, base: Any, exponent: Any) -> Any:
    """``math.pow`` and ``torch.float_power``: a float, of integers too."""
    if not isinstance(base, Static):
        return walk.power(walk.do.to_f32(base), exponent, node)
    if not isinstance(exponent, Static):
        exponent = walk.do.to_f32(walk.symbol(exponent, node))
    return walk.power(base, exponent, node)


def fmod(walk: Walker, node: ast.AST, left: Any, right: Any) -> Sym:
    """C's remainder, with the sign of ``left``."""
    left, right = walk.do.unify(walk.symbol(left, node), walk.symbol(right, node))
    if left.ty == BOOL:
        walk.fail(node, "both operands are bools: cast them with `int(…)`")
    return walk.do.infix(left, right, "%", PRODUCT, left.ty, left.nonneg)


def float_fmod(walk: Walker, node: ast.AST, left: Any, right: Any) -> Sym:
    """``math.fmod``: a float, of integers too."""
    return fmod(walk, node, *(walk.do.to_f32(walk.symbol(side, node)) for side in (left, right)))


def cast(ty: str, *, weak: bool = False) -> Handler:
    """``int(x)``, ``x.float()``."""

    def handler(walk: Walker, node: ast.AST, x: Any) -> Sym:
        x = walk.symbol(x, node)
        result = walk.do.convert(x, ty)
        changed = result is not x or result.narrow or weak != x.weak
        return another(result, weak=weak, narrow=None) if changed else result

    return handler


def number_of(walk: Walker, node: ast.AST, x: Any) -> Sym:
    """``x.item()``: the number, as Python's."""
    return another(walk.symbol(x, node), weak=True)


def math_log(walk: Walker, node: ast.AST, x: Any, base: Any) -> Any:
    """``math.log`` with or without a base."""
    result = walk.do.call("ln", walk.symbol(x, node))
    if base is None:
        return result
    return walk.do.of_floats(ast.Div, result, walk.do.call("ln", walk.symbol(base, node)), node)


def filled(walk: Walker, node: ast.AST, value: Any, dtype: Any, default: str) -> Any:
    """A constant of a dtype: ``b.new_ones((), dtype=torch.bool)``."""
    ty = element_type(walk, node, dtype) if dtype is not None and not _is_none(dtype) else default
    if isinstance(value, Static) and value.literal and isinstance(scalar(value.obj), (bool, int, float)):
        try:
            number = {F32: float, I32: int, BOOL: bool}[ty](scalar(value.obj))
        except (OverflowError, ValueError):
            walk.fail(node, f"{shown(value.obj)} is no {'int32' if ty == I32 else 'float32'}: give another dtype, or another number")
        # A tensor, not a Python number.
        return replace(walk.symbol(Static.of(number), node), plain=None, weak=False)
    return another(walk.do.convert(walk.symbol(value, node), ty), weak=False)


def element_type(walk: Walker, node: ast.AST, dtype: Any) -> str:
    """What a dtype is on the GPU."""
    if isinstance(dtype, ElementType):
        return dtype.ty
    name = str(getattr(dtype.obj, "__name__", dtype.obj)) if isinstance(dtype, Static) else "?"
    name = name.rpartition(".")[2]
    if name in ("float32", "float", "float64", "double"):
        return F32
    if name in ("int32", "int", "int64", "long"):
        return I32
    if name in ("bool", "bool_"):
        return BOOL
    walk.fail(node, f"`{name}` is no type of a score or mask function: scores are torch.float32, positions torch.int32, or bool")


def _is_none(value: Any) -> bool:
    return isinstance(value, Static) and value.obj is None


def _type_of(walk: Walker, node: ast.AST, x: Any) -> str:
    return walk.symbol(x, node).ty


def all_like(value: Any) -> Handler:
    """``torch.ones_like(x)``."""
    return lambda walk, node, x, dtype, shape=None: filled(walk, node, Static.of(value), dtype, _type_of(walk, node, x))


def full_like(walk: Walker, node: ast.AST, x: Any, value: Any, dtype: Any, shape: Any = None) -> Any:
    """``torch.full_like(x, value)``."""
    return filled(walk, node, value, dtype, _type_of(walk, node, x))


def new(value: Any) -> Handler:
    """``x.new_zeros(())``: the type is that of ``x``."""
    return lambda walk, node, x, size, dtype: new_full(walk, node, x, size, Static.of(value), dtype)


def new_full(walk: Walker, node: ast.AST, x: Any, size: Any, value: Any, dtype: Any) -> Any:
    """``x.new_full((), value)``."""
    empty = isinstance(size, Static) and isinstance(size.obj, (tuple, list)) and not size.obj
    if not empty and not (isinstance(size, Tup) and not size.items):
        walk.fail(node, "a device function has single numbers only: the size is `()`")
    return filled(walk, node, value, dtype, _type_of(walk, node, x))


def to(walk: Walker, node: ast.AST, x: Sym, *targets: Any) -> Any:
    """``x.to(torch.float32)``, ``x.to(other)``, ``x.type_as(other)``, ``x.to("cuda", torch.int32)``."""
    ty = None
    for target in targets:
        if isinstance(target, Sym):
            ty = target.ty
        elif isinstance(target, Static) and is_tensor(target.obj):
            ty = element_type(walk, node, Static.of(target.obj.dtype))
        elif target is not None and not _is_none(target) and not _is_place(target):
            ty = element_type(walk, node, target)
    return x if ty is None else cast(ty)(walk, node, x)


def astype(walk: Walker, node: ast.AST, x: Sym, dtype: Any) -> Any:
    """``x.astype(numpy.float32)``, ``x.type(torch.float32)``."""
    return cast(element_type(walk, node, dtype))(walk, node, x)


def _is_place(target: Any) -> bool:
    """Whether an argument of ``to`` names a device, or is a flag."""
    if not isinstance(target, Static):
        return False
    return isinstance(target.obj, (str, bool)) or type(target.obj).__name__ == "device"


def same(walk: Walker, node: ast.AST, x: Sym) -> Sym:
    """``x.contiguous()``: the tensor itself."""
    return x


def copied(walk: Walker, node: ast.AST, x: Sym) -> Sym:
    """``x.clone()``: another tensor of the same value."""
    return another(x)


def detach(walk: Walker, node: ast.AST, x: Sym) -> Sym:
    """``x.detach()``, where that changes no derivative."""
    if x.ty == F32 and walk.kind == "score_mod":
        reason = "`.detach()` of a float is not supported, for its derivative would have to be left out: leave `.detach()` out"
        walk.fail(node, reason)
    return x


def gelu(walk: Walker, node: ast.AST, x: Any, approximate: Any) -> Any:
    """``gelu(x, approximate="tanh")``."""
    if not isinstance(approximate, Static) or approximate.obj != "tanh":
        walk.fail(node, "`gelu` is supported with `approximate=\"tanh\"`: the GPU has no error function")
    return GELU_TANH(walk, node, x)
