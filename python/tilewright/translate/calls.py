"""The functions and methods that may be called: torch, math, numpy and the built-in ones, by their names there."""

from __future__ import annotations

import ast
import builtins
import math
import sys
from typing import TYPE_CHECKING, Any, Callable

from .captures import is_array
from .values import BOOL, COMPARISON, F32, I32, IF, PRODUCT, ElementType, Static, Sym, Tup, choice, float_literal, method

if TYPE_CHECKING:
    from .walk import Walk

Handler = Callable[["Walk", ast.AST, list, dict], Any]

SUPPORTED = (
    "abs, min, max, int, float, bool, len; of torch, math and numpy exp, exp2, log, log2, log10, log1p, expm1, sqrt, rsqrt, "
    "sin, cos, tan, tanh, sigmoid, relu, softplus, floor, ceil, trunc, abs, sign, square, reciprocal, pow, minimum, maximum, "
    "clamp, where, fmod, remainder, isnan, isinf, isfinite, logical_and, logical_or, logical_not, and the operators by name"
)

# Arguments that say where or how a result is kept, not what it is.
_IGNORED = {"device", "dtype", "requires_grad", "layout", "pin_memory", "out"}


def _number(walk: "Walk", node: ast.AST, value: Any) -> Sym:
    return walk.symbol(value, node)


def _f32(name: str, *, nonneg: bool = False) -> Handler:
    def handler(walk, node, args, kwargs):
        (x,) = _take(walk, node, args, kwargs, 1)
        return walk.do.call(name, x, nonneg=nonneg)

    return handler


def _take(walk: "Walk", node: ast.AST, args: list, kwargs: dict, count: int) -> list[Sym]:
    """Exactly ``count`` numbers."""
    extra = [key for key in kwargs if key not in _IGNORED]
    values = [*args, *(kwargs[key] for key in extra)]
    if len(values) != count:
        walk.fail(node, f"this call takes {count} argument(s), found {len(values)}")
    return [_number(walk, node, value) for value in values]


def _formula(count: int, build: Callable) -> Handler:
    """A function of f32s written with others."""

    def handler(walk, node, args, kwargs):
        values = [walk.do.to_f32(value) for value in _take(walk, node, args, kwargs, count)]
        return build(walk, node, *values)

    return handler


def _binary(op: type[ast.operator]) -> Handler:
    def handler(walk, node, args, kwargs):
        left, right = _take(walk, node, args, kwargs, 2)
        return walk.do.binary(op(), left, right, node)

    return handler


def _compare(op: type[ast.cmpop]) -> Handler:
    def handler(walk, node, args, kwargs):
        left, right = _take(walk, node, args, kwargs, 2)
        return walk.do.compare(op(), left, right, node)

    return handler


def _logical(symbol: str) -> Handler:
    def handler(walk, node, args, kwargs):
        values = [walk.do.to_bool(value) for value in _take(walk, node, args, kwargs, 2)]
        if symbol == "!=":
            return walk.do.compare(ast.NotEq(), *values, node)
        return walk.do.all_of(values, symbol)

    return handler


def _unary(op: type[ast.unaryop]) -> Handler:
    def handler(walk, node, args, kwargs):
        (x,) = _take(walk, node, args, kwargs, 1)
        return walk.do.unary(op(), x, node)

    return handler


def _extreme(name: str) -> Handler:
    def handler(walk, node, args, kwargs):
        if len(args) == 1 and isinstance(args[0], Tup):
            args = args[0].items
        if len(args) < 2 or [key for key in kwargs if key not in _IGNORED]:
            walk.fail(node, f"`{name}` takes two or more numbers")
        result = _number(walk, node, args[0])
        for other in args[1:]:
            result = extreme(walk, name, result, _number(walk, node, other))
        return result

    return handler


def extreme(walk: "Walk", name: str, left: Sym, right: Sym) -> Sym:
    """The smaller or larger of two numbers; a number rather than NaN."""
    left, right = walk.do.unify(left, right)
    if left.ty == BOOL:
        return walk.do.all_of([left, right], "&&" if name == "min" else "||")
    if left.plain is not None:
        left, right = right, left
    some = left.nonneg or right.nonneg if name == "max" else left.nonneg and right.nonneg
    return Sym(left.ty, method(left, name, right), nonneg=some)


def _clamp(walk, node, args, kwargs):
    names = {"min": 1, "max": 2, "a_min": 1, "a_max": 2}
    bounds = dict(zip((1, 2), args[1:]))
    for key, value in kwargs.items():
        if key not in names:
            walk.fail(node, f"`clamp` has no argument `{key}`: give min and max")
        bounds[names[key]] = value
    result = _number(walk, node, args[0])
    for which, name in ((1, "max"), (2, "min")):
        bound = bounds.get(which)
        if bound is not None and not (isinstance(bound, Static) and bound.obj is None):
            result = extreme(walk, name, result, _number(walk, node, bound))
    return result


def _where(walk, node, args, kwargs):
    condition, yes, no = _take(walk, node, args, kwargs, 3)
    return walk.do.select(condition, yes, no)


def _abs(walk, node, args, kwargs):
    (x,) = _take(walk, node, args, kwargs, 1)
    if x.ty == BOOL:
        x = walk.do.to_i32(x)
    return Sym(x.ty, method(x, "abs"), nonneg=True)


def _rounding(name: str, *, whole: bool) -> Handler:
    """``floor`` and ``ceil``: of integers themselves. ``whole``: the result is an integer, as in ``math``."""

    def handler(walk, node, args, kwargs):
        (x,) = _take(walk, node, args, kwargs, 1)
        if x.ty != F32:
            return walk.do.to_i32(x)
        result = walk.do.call(name, x)
        return walk.do.to_i32(result) if whole else result

    return handler


def _trunc(walk, node, args, kwargs):
    (x,) = _take(walk, node, args, kwargs, 1)
    if x.ty != F32:
        return walk.do.to_i32(x)
    x = walk.named(x, "x")
    return choice(Sym(BOOL, f"{x.text} < 0.0"), walk.do.call("ceil", x), walk.do.call("floor", x))


def _sign(walk, node, args, kwargs):
    (x,) = _take(walk, node, args, kwargs, 1)
    x = walk.named(walk.do.to_i32(x) if x.ty == BOOL else x, "x")
    zero, one = ("0.0", "1.0f32") if x.ty == F32 else ("0", "1i32")
    text = f"if {x.text} > {zero} {{ {one} }} else if {x.text} < {zero} {{ -{one} }} else {{ {x.text} * {zero} }}"
    return Sym(x.ty, text, IF)


def _power(walk, node, args, kwargs):
    extra = [kwargs[key] for key in kwargs if key not in _IGNORED]
    if len(args) + len(extra) != 2:
        walk.fail(node, "`pow` takes two arguments")
    return walk.power(*args, *extra, node)


def _cast(ty: str) -> Handler:
    def handler(walk, node, args, kwargs):
        (x,) = _take(walk, node, args, kwargs, 1)
        return walk.do.convert(x, ty)

    return handler


def _isinf(walk, node, args, kwargs):
    (x,) = _take(walk, node, args, kwargs, 1)
    return walk.do.compare(ast.Eq(), walk.do.call("abs", x), float_literal(math.inf), node)


def _isfinite(walk, node, args, kwargs):
    (x,) = _take(walk, node, args, kwargs, 1)
    return walk.do.compare(ast.Lt(), walk.do.call("abs", x), float_literal(math.inf), node)


def _isnan(walk, node, args, kwargs):
    (x,) = _take(walk, node, args, kwargs, 1)
    x = walk.named(walk.do.to_f32(x), "x")
    return Sym(BOOL, f"{x.text} != {x.text}", COMPARISON)


def _combine(text: str, *, nonneg: bool = False) -> Callable:
    """A formula in Python's own syntax over `x` and `y`, translated as a user's is."""
    tree = ast.parse(text, mode="eval").body

    def build(walk, node, *values):
        names = dict(zip("xy", (walk.named(value, name) for value, name in zip(values, "xy"))))
        result = walk.formula(tree, names, node)
        result.nonneg = nonneg
        return result

    return build


def filled(walk: "Walk", node: ast.AST, value: Any, dtype: Any, default: str) -> Any:
    """A constant of a dtype: ``b.new_ones((), dtype=torch.bool)``."""
    ty = element_type(walk, node, dtype) if dtype is not None else default
    if isinstance(value, Static) and value.literal and isinstance(value.obj, (bool, int, float)):
        return Static.of({F32: float, I32: int, BOOL: bool}[ty](value.obj))
    return walk.do.convert(walk.symbol(value, node), ty)


def element_type(walk: "Walk", node: ast.AST, dtype: Any) -> str:
    """What a dtype is on the GPU."""
    if isinstance(dtype, ElementType):
        return dtype.ty
    name = str(getattr(dtype.obj, "__name__", dtype.obj)) if isinstance(dtype, Static) else "?"
    name = name.rpartition(".")[2]
    if name in ("float32", "float", "float64", "double"):
        return F32
    if name in ("int32", "int", "int64", "long", "int16", "short", "int8", "uint8"):
        return I32
    if name in ("bool", "bool_"):
        return BOOL
    walk.fail(node, f"`{name}` is no type of a score or mask function: scores are torch.float32, positions torch.int32, or bool")


def _all_like(value: Any) -> Handler:
    def handler(walk, node, args, kwargs):
        default = args[0].ty if args and isinstance(args[0], Sym) else F32
        return filled(walk, node, Static.of(value), kwargs.get("dtype"), default)

    return handler


def _full_like(walk, node, args, kwargs):
    value = kwargs.get("fill_value", args[1] if len(args) > 1 else None)
    if value is None:
        walk.fail(node, "`full_like` takes a tensor and a number")
    default = args[0].ty if isinstance(args[0], Sym) else F32
    return filled(walk, node, value, kwargs.get("dtype"), default)


def _new(value: Any) -> Handler:
    """``x.new_zeros(…)``: the type is that of ``x``."""

    def handler(walk, node, args, kwargs):
        return filled(walk, node, Static.of(value), kwargs.get("dtype"), args[0].ty)

    return handler


def _new_full(walk, node, args, kwargs):
    value = kwargs.get("fill_value", args[2] if len(args) > 2 else None)
    if value is None:
        walk.fail(node, "`new_full` takes a size and a number")
    return filled(walk, node, value, kwargs.get("dtype"), args[0].ty)


def _to(walk, node, args, kwargs):
    """``x.to(torch.float32)``, ``x.to(other)``, ``x.type_as(other)``."""
    target = kwargs.get("dtype", args[1] if len(args) > 1 else None)
    if isinstance(target, Sym):
        return walk.do.convert(args[0], target.ty)
    if target is None or (isinstance(target, Static) and target.obj is None):
        return args[0]
    return walk.do.convert(args[0], element_type(walk, node, target))


def _same(walk, node, args, kwargs):
    return args[0]


_FLOOR, _CEIL = _rounding("floor", whole=False), _rounding("ceil", whole=False)
_MINIMUM, _MAXIMUM = _extreme("min"), _extreme("max")

# By name in torch, torch.special, torch.nn.functional and numpy, and as methods of a tensor.
BY_NAME: dict[str, Handler] = {
    "exp": _f32("exp", nonneg=True),
    "exp2": _f32("exp2", nonneg=True),
    "log": _f32("ln"),
    "log2": _f32("log2"),
    "tanh": _f32("tanh"),
    "sqrt": _f32("sqrt", nonneg=True),
    "sin": _f32("sin"),
    "cos": _f32("cos"),
    "floor": _FLOOR,
    "ceil": _CEIL,
    "trunc": _trunc,
    "fix": _trunc,
    "abs": _abs,
    "absolute": _abs,
    "sign": _sign,
    "sgn": _sign,
    "square": _formula(1, _combine("x * x", nonneg=True)),
    "rsqrt": _formula(1, lambda walk, node, x: walk.do.of_floats(ast.Div, float_literal(1.0), walk.do.call("sqrt", x), node)),
    "reciprocal": _formula(1, _combine("1.0 / x")),
    "log10": _formula(1, lambda w, n, x: w.do.of_floats(ast.Mult, w.do.call("log2", x), float_literal(math.log10(2.0)), n)),
    "log1p": _formula(1, lambda w, n, x: w.do.call("ln", w.do.of_floats(ast.Add, float_literal(1.0), x, n))),
    "expm1": _formula(1, lambda w, n, x: w.do.of_floats(ast.Sub, w.do.call("exp", x), float_literal(1.0), n)),
    "tan": _formula(1, lambda w, n, x: _quotient(w, n, w.named(x, "x"))),
    "sigmoid": _formula(1, lambda w, n, x: _sigmoid(w, n, x)),
    "expit": _formula(1, lambda w, n, x: _sigmoid(w, n, x)),
    "relu": lambda w, n, a, k: extreme(w, "max", *_take(w, n, a, k, 1), float_literal(0.0)),
    "softplus": _formula(1, lambda w, n, x: _softplus(w, n, w.named(x, "x"))),
    "pow": _power,
    "power": _power,
    "float_power": _power,
    "minimum": _MINIMUM,
    "maximum": _MAXIMUM,
    "fmin": _MINIMUM,
    "fmax": _MAXIMUM,
    "min": _MINIMUM,
    "max": _MAXIMUM,
    "clamp": _clamp,
    "clip": _clamp,
    "where": _where,
    "isnan": _isnan,
    "isinf": _isinf,
    "isfinite": _isfinite,
    "add": _binary(ast.Add),
    "sub": _binary(ast.Sub),
    "subtract": _binary(ast.Sub),
    "mul": _binary(ast.Mult),
    "multiply": _binary(ast.Mult),
    "div": _binary(ast.Div),
    "divide": _binary(ast.Div),
    "true_divide": _binary(ast.Div),
    "floor_divide": _binary(ast.FloorDiv),
    "remainder": _binary(ast.Mod),
    "mod": _binary(ast.Mod),
    "fmod": lambda walk, node, args, kwargs: _fmod(walk, *_take(walk, node, args, kwargs, 2)),
    "neg": _unary(ast.USub),
    "negative": _unary(ast.USub),
    "bitwise_and": _binary(ast.BitAnd),
    "bitwise_or": _binary(ast.BitOr),
    "bitwise_xor": _binary(ast.BitXor),
    "bitwise_not": _unary(ast.Invert),
    "logical_and": _logical("&&"),
    "logical_or": _logical("||"),
    "logical_xor": _logical("!="),
    "logical_not": _unary(ast.Not),
    "eq": _compare(ast.Eq),
    "ne": _compare(ast.NotEq),
    "lt": _compare(ast.Lt),
    "le": _compare(ast.LtE),
    "gt": _compare(ast.Gt),
    "ge": _compare(ast.GtE),
    "equal": _compare(ast.Eq),
    "not_equal": _compare(ast.NotEq),
    "less": _compare(ast.Lt),
    "less_equal": _compare(ast.LtE),
    "greater": _compare(ast.Gt),
    "greater_equal": _compare(ast.GtE),
    "ones_like": _all_like(1),
    "zeros_like": _all_like(0),
    "full_like": _full_like,
}

# Methods of a symbol that are no functions of torch.
METHODS: dict[str, Handler] = {
    "to": _to,
    "type": _to,
    "type_as": _to,
    "astype": _to,
    "float": _cast(F32),
    "double": _cast(F32),
    "int": _cast(I32),
    "long": _cast(I32),
    "bool": _cast(BOOL),
    "item": _same,
    "detach": _same,
    "clone": _same,
    "contiguous": _same,
    "new_ones": _new(1),
    "new_zeros": _new(0),
    "new_full": _new_full,
}

_BUILTINS: dict[str, Handler] = {
    "abs": _abs,
    "min": _MINIMUM,
    "max": _MAXIMUM,
    "int": _cast(I32),
    "float": _cast(F32),
    "bool": _cast(BOOL),
    "pow": _power,
}

_MATH: dict[str, Handler] = {
    "floor": _rounding("floor", whole=True),
    "ceil": _rounding("ceil", whole=True),
    "trunc": _cast(I32),
    "fabs": lambda w, n, a, k: w.do.call("abs", *_take(w, n, a, k, 1), nonneg=True),
}

# Called as they are where every argument is known; the rest would run a user's code.
_PURE_BUILTINS = {len, float, int, bool, abs, min, max, round, sum, pow, isinstance, callable, hasattr, tuple, list, all, any, range}


def handler_of(function: Any) -> Handler | None:
    """The handler of a callable of torch, math, numpy or Python."""
    name = getattr(function, "__name__", "")
    if getattr(builtins, name, None) is function:
        return _BUILTINS.get(name)
    if getattr(math, name, None) is function:
        return _MATH.get(name) or BY_NAME.get(name)
    for module in ("torch", "torch.special", "torch.nn.functional", "numpy"):
        space = sys.modules.get(module)
        for candidate in (name, name.removeprefix("special_")) if space else ():
            if candidate in BY_NAME and getattr(space, candidate, None) is function:
                return BY_NAME[candidate]
    # torch names some of its functions otherwise than its modules do, and numpy's ufuncs abbreviate.
    for module in ("torch", "torch.special", "torch.nn.functional", "numpy"):
        space = sys.modules.get(module)
        for candidate, found in BY_NAME.items() if space else ():
            if getattr(space, candidate, None) is function:
                return found
    return None


def is_pure(function: Any) -> bool:
    """Whether a function of known arguments may be called at translation."""
    try:
        if function in _PURE_BUILTINS:
            return True
    except TypeError:
        return False
    if getattr(function, "__module__", None) == "math" or handler_of(function) is not None:
        return True
    torch = sys.modules.get("torch")
    if torch is not None and function in (torch.finfo, torch.iinfo, torch.tensor, torch.as_tensor, torch.arange):
        return True
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "_")
    if isinstance(owner, (list, dict)):
        return name in ("count", "get", "index", "items", "keys", "values")
    # A trailing `_` says that the tensor itself changes.
    return (is_array(owner) and not name.endswith("_")) or isinstance(owner, (int, float, str, tuple))


def _fmod(walk: "Walk", left: Sym, right: Sym) -> Sym:
    """C's remainder, with the sign of ``left``."""
    left, right = walk.do.unify(left, right)
    return walk.do.infix(left, right, "%", PRODUCT, left.ty, left.nonneg)


def _quotient(walk: "Walk", node: ast.AST, x: Sym) -> Sym:
    return walk.do.of_floats(ast.Div, walk.do.call("sin", x), walk.do.call("cos", x), node)


def _sigmoid(walk: "Walk", node: ast.AST, x: Sym) -> Sym:
    below = walk.do.call("exp", walk.do.unary(ast.USub(), x, node))
    one = float_literal(1.0)
    return walk.do.of_floats(ast.Div, one, walk.do.of_floats(ast.Add, one, below, node), node)


def _softplus(walk: "Walk", node: ast.AST, x: Sym) -> Sym:
    """ln(1 + e^x), from the side where e^x cannot overflow."""
    size = walk.do.call("exp", walk.do.unary(ast.USub(), walk.do.call("abs", x), node))
    log = walk.do.call("ln", walk.do.of_floats(ast.Add, float_literal(1.0), size, node))
    return walk.do.of_floats(ast.Add, extreme(walk, "max", x, float_literal(0.0)), log, node)

