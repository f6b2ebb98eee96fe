"""The parameters of the functions that may be called, as torch, numpy, math and Python declare them.

A call is bound by them as Python binds it: by position, by name, by default. What a function of the GPU cannot honour must
have its default, and the message says what to write instead.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any, Callable

from .values import Static, shown
from .walker import Walker

# Parameters that say where or how a result is kept, not what it is.
_IGNORED = {"device", "layout", "pin_memory", "memory_format", "requires_grad", "non_blocking", "copy", "order", "subok", "casting"}

# Parameters that change the result, or another tensor: what to write instead.
_ADVICE = {
    "alpha": "write `input + alpha * other`, or with `-`",
    "rounding_mode": "write `input // other` for \"floor\", `torch.trunc(input / other)` for \"trunc\"",
    "out": "leave it out: a device function returns its value and changes no tensor",
    "inplace": "leave it out: a device function returns its value and changes no tensor",
    "where": "write `torch.where(condition, a, b)`",
    "dtype": "write `.to(dtype)` of the result",
    "beta": "write `softplus(beta * x) / beta`",
    "threshold": "leave it out: the function is exact everywhere",
    "approximate": "write `approximate=\"tanh\"`: the GPU has no error function",
    "mod": "write `base ** exp % mod`",
    "key": "compare the numbers themselves",
    "default": "give two or more numbers",
    "base": "write `int(…)` of a number",
}

# torch takes numpy's names for its own, too.
_OTHER_NAMES = {"x": "input", "a": "input", "x1": "input", "x2": "other"}


# torch


def unary(input, *, out=None): ...
def binary(input, other, *, out=None): ...
def scaled(input, other, *, alpha=1, out=None): ...
def divided(input, other, *, rounding_mode=None, out=None): ...
def power(input, exponent, *, out=None): ...
def clamp(input, min=None, max=None, *, out=None): ...
def where(condition, input, other, *, out=None): ...
def where_method(input, condition, other): ...
def relu(input, inplace=False): ...
def gelu(input, *, approximate="none"): ...
def softplus(input, beta=1, threshold=20): ...
def like(input, *, memory_format=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False): ...
def full_like(
    input, fill_value, *, memory_format=None, dtype=None, layout=None, device=None, requires_grad=False, pin_memory=False
): ...  # fmt: skip


# Methods of a tensor alone: the first parameter is the tensor.


def alone(input, *, memory_format=None): ...
def to(input, *targets, dtype=None, device=None, non_blocking=False, copy=False, memory_format=None): ...
def type_of(input, dtype, non_blocking=False, *, copy=False, casting=None, order=None, subok=True): ...
def type_as(input, other): ...
def new(input, size, *, dtype=None, device=None, requires_grad=False, layout=None, pin_memory=False): ...
def new_full(input, size, fill_value, *, dtype=None, device=None, requires_grad=False, layout=None, pin_memory=False): ...


# numpy


def ufunc_1(x, /, out=None, *, where=True, casting="same_kind", order="K", dtype=None, subok=True): ...
def ufunc_2(x1, x2, /, out=None, *, where=True, casting="same_kind", order="K", dtype=None, subok=True): ...
def np_where(condition, x, y, /): ...
def np_clip(a, a_min=None, a_max=None, out=None, *, min=None, max=None): ...
def np_fix(x, out=None): ...
def np_like(a, dtype=None, order="K", subok=True, shape=None, *, device=None): ...
def np_full_like(a, fill_value, dtype=None, order="K", subok=True, shape=None, *, device=None): ...


# math and Python


def one(x, /): ...
def two(x, y, /): ...
def log(x, base=None, /): ...
def whole(x, /, base=None): ...
def builtin_pow(base, exp, mod=None): ...
def several(*args, key=None, default=None): ...


def bind(walk: Walker, node: ast.AST, name: str, declared: Callable, args: list, kwargs: dict) -> list[Any]:
    """The arguments of a call in the order of the declared parameters, None for those left out.

    Fails where Python would, and for an argument that is not honoured.
    """
    signature = inspect.signature(declared)
    if "input" in signature.parameters:
        kwargs = {_OTHER_NAMES.get(key, key) if key not in signature.parameters else key: kwargs[key] for key in kwargs}
    for key in kwargs:
        if key not in signature.parameters:
            takes = ", ".join(f"`{known}`" for known, p in signature.parameters.items() if p.kind is not p.POSITIONAL_ONLY)
            walk.fail(node, f"`{name}` has no parameter `{key}`" + (f": it has {takes}" if takes else ": give its arguments by position"))
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        walk.fail(node, f"`{name}{_written(signature)}` does not take these arguments: {error}")
    values = []
    for key, parameter in signature.parameters.items():
        if key in _IGNORED:
            continue
        value = bound.get(key)
        if parameter.kind is parameter.VAR_POSITIONAL:
            values += value or []
        elif key in _ADVICE and (key, declared) not in _HONOURED:
            if value is not None and not _is(value, parameter.default):
                found = shown(value.obj) if isinstance(value, Static) else "a value of the GPU"
                walk.fail(node, f"`{name}` is not supported with `{key}`, found {found}: {_ADVICE[key]}")
        else:
            values.append(value)
    return values


# Those of the names above that a function does take.
_HONOURED = {("dtype", found) for found in (like, full_like, new, new_full, to, type_of, np_like, np_full_like)}
_HONOURED |= {("approximate", gelu), ("base", log), ("base", builtin_pow)}


def _is(value: Any, default: Any) -> bool:
    """Whether an argument is the parameter's default."""
    if not isinstance(value, Static):
        return False
    number = (bool, int, float)
    if isinstance(default, number) and not isinstance(default, bool):
        return isinstance(value.obj, number) and value.obj == default
    return value.obj is default or (isinstance(default, str) and isinstance(value.obj, str) and value.obj == default)


def _written(signature: inspect.Signature) -> str:
    """The parameters that are looked at, as a reader knows them."""
    shown_ = [p for key, p in signature.parameters.items() if key not in _IGNORED and key not in _ADVICE]
    return str(signature.replace(parameters=shown_))
