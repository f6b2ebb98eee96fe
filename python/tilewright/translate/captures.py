"""Captured values: scalars and slices, with the text that reads them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Callable

from .arrays import NotCapturable, Table, is_array, narrow_of, not_a_number, scalar
from .values import ATOM, BOOL, CAST, COMPARISON, F32, I32, I32_MAX, IF, PRODUCT, SUM, Names, Static, Sym, shown, wrap


@dataclass(frozen=True)
class Capture:
    """A parameter after the leading ones, and its value."""

    name: str
    # "f32", "i32", "bool", "f32s" or "i32s".
    kind: str
    # A number or bool; the `Table` of a slice.
    value: Any

    @property
    def rust(self) -> str:
        """The parameter's type."""
        return f"&[{self.kind[:-1]}]" if self.kind.endswith("s") else self.kind


@dataclass
class _Slice:
    """A table that was captured."""

    name: str
    table: Table


class Captures:
    """The captures of one translation, in the order in which they were met.

    One value of one origin is one capture. An origin alone would not do: what a function returns twice, or two results that
    only differ in something the origin leaves out, are told apart by their content.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._scalars: dict[Any, str] = {}
        self._slices: dict[Any, list[_Slice]] = {}
        self.listed: list[Capture] = []

    def _add(self, name: str, kind: str, value: Any) -> str:
        name = self._names.new(name)
        self.listed.append(Capture(name, kind, value))
        return name

    def _number(self, origin: Any, name: str, kind: str, value: Any) -> str:
        # The bits: 0.0 is not -0.0, and NaN is itself.
        key = (origin, kind, struct.pack("<d", value))
        if key not in self._scalars:
            self._scalars[key] = self._add(name, kind, value)
        return self._scalars[key]

    def scalar(self, static: Static) -> Sym:
        """A number or bool as a parameter.

        Raises ``NotCapturable`` for anything else.
        """
        value, weak, narrow = scalar(static.obj), not is_array(static.obj), narrow_of(static.obj)
        if isinstance(value, bool):
            return Sym(BOOL, self._number(static.origin, static.name, BOOL, value), weak=weak)
        if isinstance(value, int):
            if not -(2**31) <= value < 2**31:
                raise NotCapturable(f"{shown(value)} does not fit an i32")
            name = self._number(static.origin, static.name, I32, value)
            # Its value is no part of the text, its sign is.
            return Sym(I32, name, nonneg=value >= 0, most=I32_MAX + (value < 0), weak=weak, narrow=narrow)
        if isinstance(value, float):
            try:
                struct.pack("<f", value)
            except OverflowError:
                raise NotCapturable(f"{shown(value)} does not fit an f32: its largest number is 3.4028235e38") from None
            return Sym(F32, self._number(static.origin, static.name, F32, value), weak=weak)
        raise NotCapturable(not_a_number(static.obj, static.name, literal=static.literal))

    def slice(self, static: Static, indices: list[Sym], named: Callable[[Sym, str], Sym]) -> Sym:
        """The element of an array at ``indices``, one for each dimension. ``named`` puts a value into a `let`.

        As in Python, a negative index counts from the end; an index out of range reads 0.
        """
        found = self._slice_of(static)
        name, shape = found.name, found.table.shape
        if len(indices) != len(shape):
            were = "was" if len(indices) == 1 else "were"
            raise NotCapturable(f"`{static.name}` has {len(shape)} dimension(s), {len(indices)} {were} indexed: index all")
        lengths = []
        for axis in range(1, len(shape)):
            length = self._number((name, "size", axis), f"{static.name}_size_{axis}", I32, shape[axis])
            lengths.append(Sym(I32, length, nonneg=True))
        read = _read(name, indices, lengths, named)
        if found.table.kind == "bools":
            return Sym(BOOL, f"{read} != 0", binds=COMPARISON)
        return Sym({"f32s": F32, "i32s": I32}[found.table.kind], read, narrow=narrow_of(static.obj))

    def _slice_of(self, static: Static) -> _Slice:
        candidates = self._slices.setdefault(static.origin, [])
        for candidate in candidates:
            if candidate.table.source is static.obj:
                return candidate
        table = Table(static.obj, static.name)
        for candidate in candidates:
            if candidate.table.same(table):
                return candidate
        stored = "i32s" if table.kind == "bools" else table.kind
        candidates.append(_Slice(self._add(static.name, stored, table), table))
        return candidates[-1]


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
