"""What the walk works on: values known now, values known on the GPU, and the error that shows a line."""

from __future__ import annotations

import ast
import math
import re
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from .._native import Error

F32, I32, BOOL = "f32", "i32", "bool"

I32_MAX = 2**31 - 1

# No sequence has as many tokens: their sum, and twice a position, are an i32.
POSITIONS_MAX = 2**30 - 1

# How tightly Rust's operators bind; an operand that binds less is put in parentheses.
ATOM, UNARY, CAST, PRODUCT, SUM, BIT_AND, BIT_XOR, BIT_OR, COMPARISON, AND, OR, IF = range(11, -1, -1)


class TranslationError(Error):
    """A Python function that cannot be translated. The message shows the line and says what may be used instead.

    ``reason`` is the message alone; ``filename``, ``lineno`` (1-based), ``offset`` (1-based column) and ``text`` say where,
    as in a ``SyntaxError``; they are None where the function's text is not known.
    """

    def __init__(self, function: str, reason: str, place: "Place | None" = None, node: ast.AST | None = None):
        self.function, self.reason = function, reason
        self.filename = self.lineno = self.offset = self.text = None
        message = f"`{function}` cannot be translated for the GPU: {reason}"
        if place is not None:
            self.filename = place.filename
            line = getattr(node, "lineno", None) or place.first_line
            self.lineno = line
            self.text = place.lines[line - 1].rstrip("\n") if line <= len(place.lines) else ""
            # `ast` counts bytes of UTF-8, people count characters.
            start = len(self.text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
            end = len(self.text)
            if getattr(node, "end_lineno", None) == line:
                end = len(self.text.encode()[: node.end_col_offset].decode(errors="ignore"))
            self.offset = start + 1
            indent = len(self.text) - len(self.text.lstrip())
            marks = " " * max(0, start - indent) + "^" * max(1, end - max(start, indent))
            message += f'\n  File "{self.filename}", line {line}\n    {self.text.strip()}\n    {marks}'
        super().__init__(message)


@dataclass
class Place:
    """Where a function's text is: what error messages show."""

    filename: str
    lines: list[str]
    first_line: int


@dataclass
class Static:
    """A Python object known at translation: a number, a tensor, a function, a module.

    ``origin`` says where it came from, so that one variable becomes one capture and two variables stay two whatever their
    values; captures of one origin are one where their content is equal too. ``name`` is what the capture is called. A
    ``literal`` is written into the text; anything else is captured.
    """

    obj: Any
    name: str = "value"
    origin: Any = None
    literal: bool = False

    @staticmethod
    def of(obj: Any) -> "Static":
        """A literal."""
        known = obj if isinstance(obj, (bool, int, float, str)) else id(obj)
        return Static(obj, "value", ("literal", type(obj).__name__, known), True)


@dataclass
class Sym:
    """A number or bool known on the GPU: its Rust text."""

    ty: str
    text: str
    binds: int = ATOM
    # Known not to be negative: Python's `//` and `%` are then Rust's.
    nonneg: bool = False
    # The largest magnitude that an i32 may have: what may go beyond an i32 wraps, and has any sign then.
    most: int = I32_MAX + 1
    # The text without a suffix, of a literal whose type the other operand tells.
    plain: str | None = None
    # A Python number or bool, not a tensor: what `int(…)`, `not` and functions of `math` give.
    weak: bool = False
    # "uint8" and its like: an element of a captured tensor whose own arithmetic wraps earlier than i32's.
    narrow: str | None = None
    # The tensors of Python that it may be: what a choice gives is one of two, and changes with it.
    tensors: frozenset = field(default_factory=lambda: frozenset((object(),)), compare=False, repr=False)

    @property
    def is_atom(self) -> bool:
        """One token: it may be written twice."""
        return self.binds == ATOM and re.fullmatch(r"\w+(\.\w+)?", self.text) is not None


@dataclass
class Tup:
    """A tuple or list written in the function, or ``*args``."""

    items: list


@dataclass
class Keywords:
    """``**kwargs``: arguments by name."""

    items: dict[str, Any]


@dataclass
class Undefined:
    """A variable that has no value, or no single one, on some path to here."""

    reason: str


@dataclass
class ElementType:
    """``score.dtype``: the type of a symbol."""

    ty: str


@dataclass
class Block:
    """The ``let``s of a block, each with its lines indented relative to the block."""

    lets: list[str] = field(default_factory=list)


def another(value: Sym, **changes: Any) -> Sym:
    """A tensor of its own with the value's text: what changes one of them in place does not change the other."""
    return replace(value, tensors=frozenset((object(),)), **changes)


def wrap(value: Sym, binds: int, *, plain: bool = False) -> str:
    """The text as an operand of an operator that binds as tightly as ``binds``."""
    text = value.plain if plain and value.plain is not None else value.text
    return text if value.binds >= binds else f"({text})"


def method(receiver: Sym, name: str, *arguments: Sym) -> str:
    """The text of ``receiver.name(arguments)``."""
    listed = ", ".join(argument.plain or argument.text for argument in arguments)
    return f"{wrap(receiver, ATOM)}.{name}({listed})"


def shown(value: Any) -> str:
    """The text of a value in a message: short, whatever its ``repr`` does."""
    if isinstance(value, int) and value.bit_length() > 200:
        # Python refuses to write integers of more than 4,300 digits.
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}…"


def float_literal(value: float) -> Sym:
    """A literal of the nearest f32.

    Raises ``OverflowError`` for a finite number that is none.
    """
    if math.isnan(value):
        return Sym(F32, "f32::NAN")
    if math.isinf(value):
        return Sym(F32, "f32::INFINITY" if value > 0 else "f32::NEG_INFINITY", nonneg=value > 0)
    # Of a fixed size, for the machine's own "f" does not look.
    struct.pack("<f", value)
    text = repr(float(value))
    if "." not in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}.0e{exponent}"
    return Sym(F32, f"{text}f32", UNARY if text.startswith("-") else ATOM, value >= 0, plain=text)


def int_literal(value: int) -> Sym:
    """A literal of an i32."""
    return Sym(I32, f"{value}i32", UNARY if value < 0 else ATOM, value >= 0, abs(value), str(value))


def bool_literal(value: bool) -> Sym:
    """``true`` or ``false``."""
    return Sym(BOOL, "true" if value else "false")


def indent(text: str) -> str:
    """The text one level deeper."""
    return "\n".join(f"    {line}" if line else line for line in text.split("\n"))


def block_text(block: Block, value: Sym) -> str:
    """The inside of a block."""
    return "\n".join([*block.lets, value.text])


def choice(condition: Sym, yes: Sym, no: Sym, yes_block: Block | None = None, no_block: Block | None = None) -> Sym:
    """``if condition { yes } else { no }``, over several lines where a branch has ``let``s or is long."""
    yes_text, no_text = block_text(yes_block or Block(), yes), block_text(no_block or Block(), no)
    chained = no.binds == IF and not (no_block and no_block.lets)
    flat = f"if {condition.text} {{ {yes_text} }} else {{ {no_text} }}"
    if chained or "\n" in flat or len(flat) > 90:
        tail = no_text if chained else f"{{\n{indent(no_text)}\n}}"
        flat = f"if {condition.text} {{\n{indent(yes_text)}\n}} else {tail}"
    narrow = yes.narrow if yes.narrow == no.narrow else None
    most = max(yes.most, no.most)
    return Sym(yes.ty, flat, IF, yes.nonneg and no.nonneg, most, weak=yes.weak and no.weak, narrow=narrow)


# Rust's reserved words; a Python variable of that name gets a `_`.
_RESERVED = frozenset(
    "abstract as async await become box break const continue crate do dyn else enum extern false final fn for gen if impl in "
    "let loop macro match mod move mut override priv pub ref return self Self static struct super trait true try type "
    "typeof unsafe unsized use virtual where while yield".split()
)


# A name is for readers: what is computed of many captures would have a name as long as the formula.
_LONGEST_NAME = 60


class Names:
    """Names already given; each is given once, so that a block's `let`s may be moved out of it."""

    def __init__(self) -> None:
        # Names taken, with the number that the next one of the same base may have.
        self._taken: dict[str, int] = {}

    def new(self, wanted: str) -> str:
        """``wanted``, or it with a number, as Rust can write it."""
        base = re.sub(r"\W", "_", wanted, flags=re.ASCII)[:_LONGEST_NAME] or "value"
        if not base.strip("_"):
            base = "unused"
        if base[0].isdigit():
            base = f"_{base}"
        if base in _RESERVED:
            base += "_"
        name, number = base, self._taken.get(base, 1)
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken[base] = number
        self._taken.setdefault(name, 1)
        return name
