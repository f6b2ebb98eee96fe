"""The functions and methods that may be called: torch, math, numpy and the built-in ones, by their names there."""

from __future__ import annotations

import ast
import builtins
import functools
import math
import sys
from dataclasses import dataclass
from typing import Any, Callable

from . import formulas, operations as op, signatures as takes
from .arrays import is_array, is_tensor
from .values import BOOL, F32, I32
from .walker import Walker

SUPPORTED = (
    "abs, min, max, int, float, bool, len; of torch, math and numpy exp, exp2, log, log2, log10, log1p, expm1, sqrt, rsqrt, "
    "sin, cos, tan, tanh, sigmoid, relu, softplus, logsigmoid, silu, gelu, floor, ceil, trunc, abs, sign, square, reciprocal, "
    "pow, minimum, maximum, clamp, where, fmod, remainder, isnan, isinf, isfinite, logical_and, logical_or, logical_not, and the "
    "operators by name"
)


@dataclass(frozen=True)
class Operation:
    """A function that may be called: what it computes, and the parameters that it declares."""

    name: str
    compute: op.Handler
    declared: Callable
    # What `math` and Python's own functions give: no tensor.
    weak: bool = False

    def __call__(self, walk: Walker, node: ast.AST, args: list, kwargs: dict) -> Any:
        values = takes.bind(walk, node, self.name, self.declared, args, kwargs)
        result = self.compute(walk, node, *values)
        return walk.weakened(result) if self.weak else result


_MINIMUM, _MAXIMUM = op.pair("min"), op.pair("max")
_FLOOR, _CEIL = op.rounding("floor", whole=False), op.rounding("ceil", whole=False)

# By name in torch, torch.special, torch.nn.functional and numpy, and as methods of a tensor.
_ONE: dict[str, op.Handler] = {
    "exp": op.f32("exp", nonneg=True),
    "exp2": op.f32("exp2", nonneg=True),
    "log": op.f32("ln"),
    "log2": op.f32("log2"),
    "tanh": op.f32("tanh"),
    "sqrt": op.f32("sqrt", nonneg=True),
    "sin": op.f32("sin"),
    "cos": op.f32("cos"),
    "tan": formulas.TAN,
    "log10": formulas.LOG10,
    "log1p": formulas.LOG1P,
    "expm1": formulas.EXPM1,
    "rsqrt": formulas.RSQRT,
    "reciprocal": formulas.RECIPROCAL,
    "sigmoid": formulas.SIGMOID,
    "expit": formulas.SIGMOID,
    "logsigmoid": formulas.LOGSIGMOID,
    "floor": _FLOOR,
    "ceil": _CEIL,
    "trunc": op.trunc,
    "fix": op.trunc,
    "abs": op.absolute,
    "absolute": op.absolute,
    "sign": op.sign,
    "sgn": op.sign,
    "square": op.square,
    "isnan": formulas.ISNAN,
    "isinf": formulas.ISINF,
    "isfinite": formulas.ISFINITE,
    "neg": op.unary(ast.USub),
    "negative": op.unary(ast.USub),
    "bitwise_not": op.unary(ast.Invert),
    "logical_not": op.logical_not,
}
_TWO: dict[str, op.Handler] = {
    "minimum": _MINIMUM,
    "maximum": _MAXIMUM,
    "fmin": _MINIMUM,
    "fmax": _MAXIMUM,
    "multiply": op.operator(ast.Mult),
    "floor_divide": op.operator(ast.FloorDiv),
    "remainder": op.operator(ast.Mod),
    "fmod": op.fmod,
    "bitwise_and": op.operator(ast.BitAnd),
    "bitwise_or": op.operator(ast.BitOr),
    "bitwise_xor": op.operator(ast.BitXor),
    "logical_and": op.logical("&&"),
    "logical_or": op.logical("||"),
    "logical_xor": op.logical("!="),
    "not_equal": op.comparison(ast.NotEq),
    "less": op.comparison(ast.Lt),
    "less_equal": op.comparison(ast.LtE),
    "greater": op.comparison(ast.Gt),
    "greater_equal": op.comparison(ast.GtE),
}
_ADD, _SUB, _DIV = op.operator(ast.Add), op.operator(ast.Sub), op.operator(ast.Div)

TORCH: dict[str, Operation] = {name: Operation(name, found, takes.unary) for name, found in _ONE.items()}
TORCH |= {name: Operation(name, found, takes.binary) for name, found in _TWO.items()}
TORCH |= {
    name: Operation(name, found, declared)
    for name, found, declared in [
        ("mul", op.operator(ast.Mult), takes.binary),
        ("eq", op.comparison(ast.Eq), takes.binary),
        ("equal", op.comparison(ast.Eq), takes.binary),
        ("ne", op.comparison(ast.NotEq), takes.binary),
        ("lt", op.comparison(ast.Lt), takes.binary),
        ("le", op.comparison(ast.LtE), takes.binary),
        ("gt", op.comparison(ast.Gt), takes.binary),
        ("ge", op.comparison(ast.GtE), takes.binary),
        ("add", _ADD, takes.scaled),
        ("sub", _SUB, takes.scaled),
        ("subtract", _SUB, takes.scaled),
        ("div", _DIV, takes.divided),
        ("divide", _DIV, takes.divided),
        ("true_divide", _DIV, takes.binary),
        ("pow", op.power, takes.power),
        ("float_power", op.float_power, takes.power),
        ("min", op.extreme_of_tensors("min"), takes.binary),
        ("max", op.extreme_of_tensors("max"), takes.binary),
        ("clamp", op.clamp, takes.clamp),
        ("clip", op.clamp, takes.clamp),
        ("where", op.where, takes.where),
        ("relu", op.relu, takes.relu),
        ("silu", formulas.SILU, takes.relu),
        ("gelu", op.gelu, takes.gelu),
        ("softplus", formulas.SOFTPLUS, takes.softplus),
        ("ones_like", op.all_like(1), takes.like),
        ("zeros_like", op.all_like(0), takes.like),
        ("full_like", op.full_like, takes.full_like),
    ]
}

NUMPY: dict[str, Operation] = {name: Operation(name, found, takes.ufunc_1) for name, found in _ONE.items()}
NUMPY |= {name: Operation(name, found, takes.ufunc_2) for name, found in _TWO.items()}
NUMPY |= {
    name: Operation(name, found, declared)
    for name, found, declared in [
        ("sign", op.np_sign, takes.ufunc_1),
        ("fix", op.trunc, takes.np_fix),
        ("equal", op.comparison(ast.Eq), takes.ufunc_2),
        ("add", _ADD, takes.ufunc_2),
        ("subtract", _SUB, takes.ufunc_2),
        ("divide", _DIV, takes.ufunc_2),
        ("true_divide", _DIV, takes.ufunc_2),
        ("mod", op.operator(ast.Mod), takes.ufunc_2),
        ("power", op.power, takes.ufunc_2),
        ("pow", op.power, takes.ufunc_2),
        ("float_power", op.float_power, takes.ufunc_2),
        ("where", op.where, takes.np_where),
        ("clip", op.clamp, takes.np_clip),
        ("ones_like", op.all_like(1), takes.np_like),
        ("zeros_like", op.all_like(0), takes.np_like),
        ("full_like", op.full_like, takes.np_full_like),
    ]
}

# Methods of a value of the GPU, beside those functions of torch that are methods too.
METHODS: dict[str, Operation] = {
    name: Operation(name, found, declared)
    for name, found, declared in [
        ("where", op.where_method, takes.where_method),
        ("to", op.to, takes.to),
        ("type", op.astype, takes.type_of),
        ("astype", op.astype, takes.type_of),
        ("type_as", op.to, takes.type_as),
        ("float", op.cast(F32), takes.alone),
        ("double", op.cast(F32), takes.alone),
        ("int", op.cast(I32), takes.alone),
        ("long", op.cast(I32), takes.alone),
        ("bool", op.cast(BOOL), takes.alone),
        ("item", op.number_of, takes.alone),
        ("detach", op.detach, takes.alone),
        ("clone", op.copied, takes.alone),
        ("contiguous", op.same, takes.alone),
        ("new_ones", op.new(1), takes.new),
        ("new_zeros", op.new(0), takes.new),
        ("new_full", op.new_full, takes.new_full),
    ]
}

_BUILTINS: dict[str, Operation] = {
    "abs": Operation("abs", op.absolute, takes.one),
    "min": Operation("min", op.extreme_of("min"), takes.several),
    "max": Operation("max", op.extreme_of("max"), takes.several),
    "int": Operation("int", op.cast(I32, weak=True), takes.whole),
    "float": Operation("float", op.cast(F32, weak=True), takes.one),
    "bool": Operation("bool", op.cast(BOOL, weak=True), takes.one),
    "pow": Operation("pow", op.power, takes.builtin_pow),
}

_MATH: dict[str, Operation] = {
    name: Operation(name, _ONE[name], takes.one, weak=True)
    for name in (
        "exp", "exp2", "log2", "log10", "log1p", "expm1", "tanh", "sqrt", "sin", "cos", "tan", "isnan", "isinf", "isfinite"
    )
}  # fmt: skip
_MATH |= {
    "log": Operation("log", op.math_log, takes.log, weak=True),
    "floor": Operation("floor", op.rounding("floor", whole=True), takes.one),
    "ceil": Operation("ceil", op.rounding("ceil", whole=True), takes.one),
    "trunc": Operation("trunc", op.cast(I32, weak=True), takes.one),
    "fabs": Operation("fabs", op.f32("abs", nonneg=True), takes.one, weak=True),
    "pow": Operation("pow", op.float_power, takes.two, weak=True),
    "fmod": Operation("fmod", op.float_fmod, takes.two, weak=True),
    "remainder": Operation("remainder", formulas.REMAINDER, takes.two, weak=True),
}

# The modules and what their functions are called here, with prefixes and suffixes that their names have there.
_SPACES = [("torch", TORCH), ("torch.special", TORCH), ("torch.nn.functional", TORCH), ("numpy", NUMPY)]

# Called as they are where every argument is known; the rest would run a user's code.
_PURE_BUILTINS = {len, float, int, bool, abs, min, max, round, sum, pow, isinstance, callable, hasattr, tuple, list, all, any, range}
_PURE_MAKERS = [("torch", name) for name in ("finfo", "iinfo", "tensor", "as_tensor", "arange")]
_PURE_MAKERS += [("numpy", name) for name in ("finfo", "iinfo", "array", "asarray", "arange")]

# Methods of texts that make none longer.
_OF_TEXTS = {"startswith", "endswith", "lower", "upper", "strip", "split", "partition", "removeprefix", "removesuffix", "find", "index", "count"}

# Methods of numpy's arrays that change the array, or write to a file.
_CHANGES = {"sort", "fill", "resize", "partition", "put", "itemset", "setfield", "setflags", "byteswap", "tofile", "dump"}


def operation_of(function: Any) -> Operation | None:
    """What a callable of torch, math, numpy or Python is here."""
    if isinstance(function, Operation):
        return function
    name = getattr(function, "__name__", "")
    if not isinstance(name, str):
        return None
    if getattr(builtins, name, None) is function:
        return _BUILTINS.get(name)
    if getattr(math, name, None) is function:
        return _MATH.get(name)
    for module, known in _SPACES:
        space = sys.modules.get(module)
        candidate = name.removeprefix("special_")
        if space is not None and candidate in known and getattr(space, candidate, None) is function:
            return known[candidate]
    # torch names some of its functions otherwise than its modules do, and numpy's ufuncs abbreviate.
    for module, known in _SPACES:
        space = sys.modules.get(module)
        for candidate, found in known.items() if space is not None else ():
            if getattr(space, candidate, None) is function:
                return found
    return None


def method_of(name: str) -> Operation | None:
    """A method of a value of the GPU, as torch's tensors have it."""
    found = METHODS.get(name) or TORCH.get(name)
    tensor = tensor_type()
    return found if name in METHODS or tensor is None or hasattr(tensor, name) else None


def tensor_type() -> Any:
    """What positions and scores are in Python; None without PyTorch."""
    return getattr(sys.modules.get("torch"), "Tensor", None)


def dtype_of(ty: str) -> Any:
    """torch's dtype of a type; None without PyTorch."""
    return getattr(sys.modules.get("torch"), {F32: "float32", I32: "int32", BOOL: "bool"}[ty], None)


@functools.cache
def formula_names() -> dict[str, Any]:
    """What formulas may call."""
    names = ("exp", "log", "log2", "tanh", "sqrt", "sin", "cos", "fmod", "log1p", "softplus", "sigmoid")
    return {name: TORCH[name] for name in names} | {"abs": TORCH["abs"], "inf": math.inf}


def is_pure(function: Any, keywords: dict) -> bool:
    """Whether a function of known arguments may be called at translation."""
    if "out" in keywords:
        return False
    try:
        if function in _PURE_BUILTINS:
            return True
    except TypeError:
        return False
    if getattr(function, "__module__", None) == "math" or operation_of(function) is not None:
        return True
    if any(function is getattr(sys.modules.get(module), name, sys) for module, name in _PURE_MAKERS):
        return True
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "_")
    if isinstance(owner, (list, dict)):
        return name in ("count", "get", "index", "items", "keys", "values")
    # A trailing `_` says that the tensor itself changes.
    if is_array(owner):
        return not name.endswith("_") and (is_tensor(owner) or name not in _CHANGES)
    if isinstance(owner, str):
        return name in _OF_TEXTS
    return isinstance(owner, (int, float, tuple)) and not name.startswith("__")
