"""Captured values: scalars and slices, with the text that reads them."""

from __future__ import annotations

import array
import sys
from dataclasses import dataclass
from typing import Any, Callable

from .values import ATOM, BOOL, CAST, COMPARISON, F32, I32, IF, PRODUCT, SUM, Names, Static, Sym, wrap


@dataclass(frozen=True)
class Capture:
    """A parameter after the leading ones, and its value."""

    name: str
    # "f32", "i32", "bool", "f32s" or "i32s".
    kind: str
    # A number or bool; the little-endian bytes of a slice.
    value: Any

    @property
    def rust(self) -> str:
        """The parameter's type."""
        return f"&[{self.kind[:-1]}]" if self.kind.endswith("s") else self.kind


class NotCapturable(Exception):
    """Why an object cannot be captured."""


def is_array(obj: Any) -> bool:
    """Whether ``obj`` is a torch tensor or a numpy array (which also stands for its scalars)."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    return (torch is not None and isinstance(obj, torch.Tensor)) or (
        numpy is not None and isinstance(obj, (numpy.ndarray, numpy.generic))
    )


def scalar(obj: Any) -> Any:
    """The Python number of ``obj``, or ``obj`` itself where it is no array of one element without dimensions."""
    if is_array(obj) and len(obj.shape) == 0:
        obj = obj.item()
    return obj


class Captures:
    """The captures of one translation, in the order in which they were met."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._found: dict[Any, Any] = {}
        self.listed: list[Capture] = []

    def _add(self, origin: Any, name: str, kind: str, value: Any) -> str:
        key = (origin, kind)
        if key not in self._found:
            self._found[key] = self._names.new(name)
            self.listed.append(Capture(self._found[key], kind, value))
        return self._found[key]

    def scalar(self, static: Static) -> Sym:
        """A number or bool as a parameter.

        Raises ``NotCapturable`` for anything else.
        """
        value = scalar(static.obj)
        if isinstance(value, bool):
            return Sym(BOOL, self._add(static.origin, static.name, BOOL, value))
        if isinstance(value, int):
            if not -(2**31) <= value < 2**31:
                raise NotCapturable(f"{value} does not fit an i32")
            return Sym(I32, self._add(static.origin, static.name, I32, value), nonneg=value >= 0)
        if isinstance(value, float):
            return Sym(F32, self._add(static.origin, static.name, F32, value))
        raise NotCapturable("")

    def slice(self, static: Static, indices: list[Sym], named: Callable[[Sym, str], Sym]) -> Sym:
        """The element of an array at ``indices``, one for each dimension. ``named`` puts a value into a `let`.

        As in Python, a negative index counts from the end; an index out of range reads 0.
        """
        name, kind, shape = self._slice_of(static)
        if len(indices) != len(shape):
            were = "was" if len(indices) == 1 else "were"
            raise NotCapturable(f"`{static.name}` has {len(shape)} dimension(s), {len(indices)} {were} indexed: index all")
        lengths = []
        for axis in range(1, len(shape)):
            origin = (static.origin, "size", axis)
            lengths.append(Sym(I32, self._add(origin, f"{static.name}_size_{axis}", I32, shape[axis]), nonneg=True))
        element = {"f32s": F32, "i32s": I32, "bools": I32}[kind]
        read = _read(name, indices, lengths, named)
        return Sym(BOOL, f"{read} != 0", binds=COMPARISON) if kind == "bools" else Sym(element, read)

    def _slice_of(self, static: Static) -> tuple[str, str, tuple[int, ...]]:
        key = (static.origin, "slice")
        if key not in self._found:
            flat, kind, shape = _flatten(static)
            stored = "i32s" if kind == "bools" else kind
            self._found[key] = (self._add(static.origin, static.name, stored, flat), kind, shape)
        return self._found[key]


def _read(name: str, indices: list[Sym], lengths: list[Sym], named: Callable[[Sym, str], Sym]) -> str:
    """The text that reads one element of a row-major array."""

    def position(index: Sym, length: str) -> Sym:
        if index.nonneg or index.plain is not None and not index.plain.startswith("-"):
            return Sym("usize", f"{wrap(index, CAST, plain=True)} as usize", CAST)
        text = wrap(index, ATOM)
        return Sym("usize", f"if {text} < 0 {{ ({text} + {length}) as usize }} else {{ {text} as usize }}", IF)

    if len(indices) == 1:
        return f"{name}[{position(indices[0], f'{name}.len() as i32').text}]"
    # The first size follows from the others.
    inner = " * ".join(length.text for length in lengths)
    flat = position(indices[0], f"{name}.len() as i32 / ({inner})")
    checks = []
    for index, length in zip(indices[1:], lengths):
        at = named(position(index, length.text), "at")
        checks.append(f"{at.text} < {length.text} as usize")
        flat = Sym("usize", f"{wrap(flat, PRODUCT)} * {length.text} as usize + {at.text}", SUM)
    # A row's end is not the next row's start: beyond it the slice is left, which reads 0.
    return f"{name}[if {' && '.join(checks)} {{ {flat.text} }} else {{ usize::MAX }}]"


def _flatten(static: Static) -> tuple[bytes, str, tuple[int, ...]]:
    """The elements of an array, row-major, as little-endian i32s or f32s."""
    obj, name = static.obj, static.name
    if isinstance(obj, (list, tuple)):
        if not obj or not all(isinstance(item, (bool, int, float)) for item in obj):
            raise NotCapturable(f"`{name}` is a {type(obj).__name__} of something else than numbers: make it a tensor")
        values, shape = list(obj), (len(obj),)
        kind = "f32s" if any(isinstance(v, float) for v in values) else "i32s"
        kind = "bools" if all(isinstance(v, bool) for v in values) else kind
    elif is_array(obj):
        dtype = str(obj.dtype)
        if "complex" in dtype or "object" in dtype or "str" in dtype.lower():
            raise NotCapturable(f"`{name}` has the dtype {dtype}: make it one of integers, floats or bools")
        kind = "bools" if "bool" in dtype else "f32s" if "float" in dtype else "i32s"
        try:
            if hasattr(obj, "detach"):
                obj = obj.detach().float() if kind == "f32s" else obj.detach()
            shape, values = tuple(obj.shape), obj.reshape(-1).tolist()
        except Exception as error:
            raise NotCapturable(f"`{name}` cannot be read, {type(error).__name__}: {error}") from error
    else:
        raise NotCapturable(f"`{name}` is a {type(obj).__name__}: only tensors, numpy arrays and lists can be indexed")
    if not shape:
        raise NotCapturable(f"`{name}` has no dimensions: use it without an index")
    if len(values) >= 2**31:
        raise NotCapturable(f"`{name}` has {len(values)} elements: at most {2**31 - 1}")
    try:
        flat = array.array("f" if kind == "f32s" else "i", values)
    except OverflowError:
        raise NotCapturable(f"`{name}` holds integers that do not fit an i32") from None
    if sys.byteorder == "big":
        flat.byteswap()
    return flat.tobytes(), kind, shape
