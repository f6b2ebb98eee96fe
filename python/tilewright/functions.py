"""Score and mask functions written in Python, as FlexAttention takes them.

>>> import tilewright
>>> @tilewright.mask_mod
... def causal(b, h, q, kv):
...     return q >= kv

The function is translated from its syntax tree; it runs on the CPU executor and, as CUDA made from the same text, on the
GPU. ``docs/python-functions.md`` tells what it may contain.
"""

from __future__ import annotations

import operator
import sys
import weakref
from typing import Any, Callable

from . import _native
from .translate import Capture, TranslationError, translate
from .translate.arrays import NotCapturable, Table
from .translate.values import shown
from .translate.walk import LEADING, unwrap

__all__ = ["DeviceFunction", "TranslationError", "mask_mod", "mask_mod_of", "score_mod"]


class DeviceFunction:
    """A score or mask function that kernels call. Made by :func:`score_mod` and :func:`mask_mod`.

    Calling it calls the Python function. Two of equal text and captures are equal and have equal hashes, so that they share
    their kernels.
    """

    def __init__(self, kind: str, function: Callable, overrides: dict[str, Any] | None = None):
        self._overrides = dict(overrides or {})
        translation = translate(kind, function, self._overrides)
        try:
            self._native = _native.DeviceFunction(kind, translation.source, [_given(capture) for capture in translation.captures])
        except NotCapturable as error:
            raise TranslationError(translation.name, str(error), translation.place, translation.node) from None
        except Exception as error:
            reason = f"its translation is refused: {error}\n{_excerpt(translation.source)}"
            raise TranslationError(translation.name, reason, translation.place, translation.node) from None
        #: By which the operators of PyTorch know the function: they take tensors and numbers alone.
        self.number: int = self._native.number
        self.__tilewright_function__ = unwrap(function)
        self.__name__ = translation.name
        self.__doc__ = getattr(function, "__doc__", None)
        # Of tables the size alone: they are kept once, where kernels read them.
        self._captures = {c.name: _Size(c.value.elements) if isinstance(c.value, Table) else c.value for c in translation.captures}

    @property
    def kind(self) -> str:
        """``"score_mod"`` or ``"mask_mod"``."""
        return self._native.kind

    @property
    def function(self) -> Callable:
        """The Python function."""
        return self.__tilewright_function__

    @property
    def source(self) -> str:
        """The translation: a Rust function in the form that ``#[score_mod]`` and ``#[mask_mod]`` take."""
        return self._native.source

    @property
    def cuda(self) -> str:
        """The CUDA C++ that kernels are compiled with. It holds no value of a capture."""
        return self._native.cuda

    @property
    def captures(self) -> dict[str, Any]:
        """The captured values by the name of their parameter: numbers and bools; tuples for slices."""
        if not any(isinstance(value, _Size) for value in self._captures.values()):
            return dict(self._captures)
        pairs = zip(self._captures.items(), self._native.captures())
        return {name: table if isinstance(value, _Size) else value for (name, value), table in pairs}

    def bind(self, **values: Any) -> "DeviceFunction":
        """The same function with other values for what it closes over, or for its parameters with defaults.

        ``window.bind(size=512)`` reads 512 where the function reads ``size``. As long as types stay the same, and integers
        their sign, so does the text: nothing is compiled again.

        Raises :class:`TranslationError` for a name that the function does not capture.
        """
        return DeviceFunction(self.kind, self.function, {**self._overrides, **values})

    @property
    def bound(self) -> dict[str, Any]:
        """The values that :meth:`bind` put in the place of the function's own, by name."""
        return dict(self._overrides)

    def run(self, *args: float) -> float | bool:
        """The translation for one element, on the CPU, with the arguments of the Python function, as plain numbers."""
        return self._native.run(*self._element("run", args))

    def gradient(self, score: float, b: int, h: int, q: int, kv: int) -> float:
        """The derivative of a score function's value by ``score`` for one element, on the CPU: what a backward pass uses.

        It is made from the translation by the rules of differentiation, with everything else constant.
        """
        if self.kind != "score_mod":
            raise TypeError(f"`{self.__name__}` is a mask_mod, which has no derivative: needed a score_mod")
        return self._native.gradient(*self._element("gradient", (score, b, h, q, kv)))

    def _element(self, what: str, args: tuple[Any, ...]) -> list[Any]:
        """The arguments of one element as the native module takes them, or TypeError or ValueError."""
        names = [name for name, _ in LEADING[self.kind]]
        if len(args) != len(names):
            raise TypeError(f"{what} is given {len(args)} numbers, needed {len(names)}: {', '.join(names)}")
        numbers = [_score(value) if name == "score" else _position(name, value) for name, value in zip(names, args)]
        return numbers if self.kind == "score_mod" else [0.0, *numbers]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceFunction) and self._native == other._native

    def __hash__(self) -> int:
        return hash(self._native)

    # It never changes: a copied module shares it.
    def __copy__(self) -> "DeviceFunction":
        return self

    def __deepcopy__(self, memo: Any) -> "DeviceFunction":
        return self

    def __reduce__(self) -> "str | tuple":
        function, overrides = self.function, self._overrides
        # A decorated function has the place of the plain one in its module: it is found there, as functions are.
        decorated = _global_of(function)
        if decorated is self:
            self.__module__, self.__qualname__ = function.__module__, function.__qualname__
            return function.__qualname__
        if isinstance(decorated, DeviceFunction) and decorated.kind == self.kind and decorated.function is function:
            return _bound, (decorated, overrides)
        return DeviceFunction, (self.kind, function, overrides)

    def __repr__(self) -> str:
        captured = ", ".join(f"{name}={value!r}" for name, value in self._captures.items())
        return f"<tilewright.{self.kind} {self.__name__}({captured})>"


def score_mod(function: Callable) -> DeviceFunction:
    """Makes a score function: ``f(score, b, h, q, kv)`` returns the score that takes the place of ``score``.

    ``score`` is the scaled product of query ``q`` and key ``kv`` (float32), before the softmax; ``b`` and ``h`` are batch and
    head. Use it as a decorator or as a call, as in ``score_mod(lambda score, b, h, q, kv: score - abs(q - kv))``.

    Raises :class:`TranslationError`, which shows the line, for what is outside the subset.
    """
    return _make("score_mod", function)


def mask_mod(function: Callable) -> DeviceFunction:
    """Makes a mask function: ``f(b, h, q, kv)`` says whether query ``q`` sees key ``kv``.

    FlexAttention's mask functions work as they are, those of ``and_masks`` and ``or_masks`` among them. Blocks of which the
    function keeps nothing are not looked at, and blocks that it keeps as a whole do not pay for it.

    Raises :class:`TranslationError`, which shows the line, for what is outside the subset.
    """
    return _make("mask_mod", function)


def _make(kind: str, function: Callable) -> DeviceFunction:
    if isinstance(function, DeviceFunction):
        if function.kind == kind:
            return function
        raise TranslationError(function.__name__, f"it is a {function.kind} already, needed a {kind}")
    return DeviceFunction(kind, function)


# A mask that is used in every layer and step is translated once.
_OF_BLOCK_MASKS: "weakref.WeakKeyDictionary[Any, DeviceFunction]" = weakref.WeakKeyDictionary()


def mask_mod_of(block_mask: Any) -> DeviceFunction | None:
    """The mask function of a FlexAttention ``BlockMask``; None where it keeps everything (``noop_mask``).

    It is translated once for each block mask: values that the function closes over are read then, as FlexAttention reads
    them when the mask is made.

    Raises :class:`TranslationError` for a function outside the subset, and ValueError for a mask that was sliced, which lost its function,
    and has partial blocks; finding that out waits for the GPU.
    """
    function = getattr(block_mask, "mask_mod", None)
    if function is None or _is_noop(function):
        return None
    # FlexAttention takes the function away from a mask that is sliced: another batch or head is its first now.
    if getattr(function, "__name__", "") == "_sliced_mask_mod_error":
        if int(block_mask.kv_num_blocks.sum()) == 0:
            return None
        raise ValueError(
            "the BlockMask was sliced, which resets its mask_mod, and its kv_num_blocks count partial blocks, within which mask_mod decides: set "
            "`sliced.mask_mod = whole.mask_mod` (or a function that adds to b, h and q_idx where the slice begins, if it depends on them), or "
            "make the mask of this part with create_block_mask"
        )
    found = _OF_BLOCK_MASKS.get(block_mask)
    if found is None or found.function is not unwrap(function):
        found = _OF_BLOCK_MASKS[block_mask] = mask_mod(function)
    return found


def _is_noop(function: Any) -> bool:
    from torch.nn.attention.flex_attention import noop_mask

    return function is noop_mask


class _Size(int):
    """The number of elements of a captured table."""

    def __repr__(self) -> str:
        return f"({int(self)} values)"


def _position(name: str, value: Any) -> int:
    """A position as an i32."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {shown(value)}, of type {type(value).__name__}, needed a whole number") from None
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"{name} is {shown(number)}, needed an int32: at least -2³¹ and below 2³¹")
    return number


def _score(value: Any) -> float:
    """A score as a float."""
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        raise TypeError(f"score is {shown(value)}, of type {type(value).__name__}, needed a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"score is {shown(value)}, needed a number that a float can hold") from None


def _given(capture: Capture) -> tuple[str, Any]:
    """A capture as the native module takes it."""
    table = capture.value
    return capture.kind, (table.elements, table.chunks()) if isinstance(table, Table) else table


def _excerpt(text: str) -> str:
    """A text for a message: all of it where it is short."""
    return text if len(text) <= 4000 else f"{text[:4000]}\n… ({len(text)} characters)"


def _global_of(function: Any) -> Any:
    """What the module of a function has under the function's name; None for a function inside of another."""
    found = sys.modules.get(getattr(function, "__module__", None) or "")
    for part in getattr(function, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return found


def _bound(function: DeviceFunction, values: dict[str, Any]) -> DeviceFunction:
    """A copied function: the decorated one with other values."""
    return DeviceFunction(function.kind, function.function, values)
