"""Tensors, arrays and lists that a function captures: what they hold, and their elements as bytes."""

from __future__ import annotations

import array as arrays
import math
import sys
from itertools import zip_longest
from typing import Any, Iterator

from .values import shown

# Elements that are converted at a time: what a table takes beside itself.
_CHUNK = 1 << 18

# Integers whose own arithmetic wraps before i32's does.
_NARROW = ("int8", "uint8", "int16", "uint16")

_I32 = range(-(2**31), 2**31)

_NO_I32 = "holds integers that do not fit an i32"
_NO_F32 = "holds numbers that do not fit an f32, whose largest is 3.4028235e38: clamp them, or write infinities"


class NotCapturable(Exception):
    """Why an object cannot be captured."""


def module_class(module: str, name: str) -> type | None:
    """A class of a module that was imported; None where it was not, or has none (a stub)."""
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def is_tensor(obj: Any) -> bool:
    """Whether ``obj`` is a torch tensor."""
    tensor = module_class("torch", "Tensor")
    return tensor is not None and isinstance(obj, tensor)


def is_array(obj: Any) -> bool:
    """Whether ``obj`` is a torch tensor or a numpy array (which also stands for its scalars)."""
    if is_tensor(obj):
        return True
    classes = [module_class("numpy", name) for name in ("ndarray", "generic")]
    return any(found is not None and isinstance(obj, found) for found in classes)


def scalar(obj: Any) -> Any:
    """The Python number of ``obj``, or ``obj`` itself where it is no array of one element without dimensions."""
    if is_array(obj) and len(obj.shape) == 0:
        obj = obj.item()
    return obj


def narrow_of(obj: Any) -> str | None:
    """The dtype of an array of small integers, else None."""
    name = str(getattr(obj, "dtype", "")).rpartition(".")[2] if is_array(obj) else ""
    return name if name in _NARROW else None


class Table:
    """An array or a flat list of numbers with its elements as ``"f32s"``, ``"i32s"`` or ``"bools"``.

    Raises ``NotCapturable`` for anything else.
    """

    def __init__(self, obj: Any, name: str) -> None:
        self.source, self.obj, self.name = obj, obj, name
        if isinstance(obj, (list, tuple)):
            self.obj = [item if isinstance(item, (int, float)) else scalar(item) for item in obj]
            if not obj or not all(isinstance(item, (bool, int, float)) for item in self.obj):
                raise NotCapturable(f"`{name}` is a {type(obj).__name__} of something else than numbers: make it a tensor")
            self.kind = "f32s" if any(isinstance(item, float) for item in self.obj) else "i32s"
            self.kind = "bools" if all(isinstance(item, bool) for item in self.obj) else self.kind
            self.shape: tuple[int, ...] = (len(obj),)
        elif is_array(obj):
            self.kind = _kind(obj, name)
            self.shape = tuple(int(size) for size in obj.shape)
        else:
            raise NotCapturable(f"`{name}` is a {type(obj).__name__}: only tensors, numpy arrays and lists can be indexed")
        if not self.shape:
            raise NotCapturable(f"`{name}` has no dimensions: use it without an index")
        self.elements = 1
        for size in self.shape:
            self.elements *= size
        if self.elements >= 2**31:
            raise NotCapturable(f"`{name}` has {self.elements} elements: at most {2**31 - 1}")

    def chunks(self) -> Iterator[bytes]:
        """The elements, row-major, as little-endian i32s or f32s: some at a time, so that there is no second copy."""
        try:
            if isinstance(self.obj, list):
                yield _listed(self.obj, self.kind)
                return
            obj = self.obj
            if is_tensor(obj):
                # Views that negate or conjugate when they are read hold other bytes than they stand for.
                obj = obj.detach().resolve_conj().resolve_neg()
            for piece in _pieces(obj):
                yield _of_tensor(piece, self.kind) if is_tensor(piece) else _of_numpy(piece, self.kind)
        except NotCapturable as error:
            raise NotCapturable(f"`{self.name}` {error}") from None
        except Exception as error:
            raise NotCapturable(f"`{self.name}` cannot be read, {type(error).__name__}: {error}") from error

    def same(self, other: "Table") -> bool:
        """Whether both hold the same numbers."""
        if (self.kind, self.shape) != (other.kind, other.shape):
            return False
        return all(one == two for one, two in zip_longest(self.chunks(), other.chunks()))


def _kind(obj: Any, name: str) -> str:
    """What an array's elements are on the GPU."""
    dtype = obj.dtype
    if is_tensor(obj):
        if dtype == sys.modules["torch"].bool:
            return "bools"
        whole = not dtype.is_floating_point and not dtype.is_complex and not getattr(obj, "is_quantized", False)
        kind = "f32s" if dtype.is_floating_point else "i32s" if whole else None
    else:
        masked = module_class("numpy.ma", "MaskedArray")
        if masked is not None and isinstance(obj, masked):
            raise NotCapturable(f"`{name}` is a masked array, whose mask would be lost: fill it with `{name}.filled(…)`")
        kind = {"b": "bools", "i": "i32s", "u": "i32s", "f": "f32s"}.get(dtype.kind)
    if kind is None:
        raise NotCapturable(f"`{name}` has the dtype {dtype}: make it one of integers, floats or bools")
    return kind


def _pieces(obj: Any) -> Iterator[Any]:
    """The array in parts of some size, flat and in order."""
    rows, size = len(obj), 1
    for extent in obj.shape[1:]:
        size *= extent
    if rows * size <= _CHUNK:
        yield obj.reshape(-1)
    elif size <= _CHUNK:
        step = _CHUNK // max(size, 1)
        for at in range(0, rows, step):
            yield obj[at : at + step].reshape(-1)
    else:
        for row in obj:
            yield from _pieces(row)


def _of_tensor(piece: Any, kind: str) -> bytes:
    torch = sys.modules["torch"]
    if kind == "f32s":
        wide, piece = piece, piece.to(device="cpu", dtype=torch.float32)
        # Of 8 bytes and more: an infinity that was a number.
        if wide.element_size() > 4 and (piece.isinf() & wide.isfinite().cpu()).any():
            raise NotCapturable(_NO_F32)
    else:
        unsigned = not piece.dtype.is_signed
        piece = piece.to(device="cpu", dtype=torch.int64)
        if piece.numel():
            least, most = piece.min().item(), piece.max().item()
            # A uint64 of 64 bits is negative now.
            if least not in _I32 or most not in _I32 or (unsigned and least < 0):
                raise NotCapturable(_NO_I32)
        piece = piece.to(torch.int32)
    try:
        return _little(piece.numpy())
    except RuntimeError:
        # A torch without numpy.
        return _listed(piece.tolist(), kind)


def _of_numpy(piece: Any, kind: str) -> bytes:
    if kind == "f32s":
        numpy = sys.modules["numpy"]
        with numpy.errstate(over="ignore"):
            wide, piece = piece, piece.astype("=f4")
        if wide.itemsize > 4 and (numpy.isinf(piece) & numpy.isfinite(wide)).any():
            raise NotCapturable(_NO_F32)
        return _little(piece)
    if piece.size and (int(piece.min()) not in _I32 or int(piece.max()) not in _I32):
        raise NotCapturable(_NO_I32)
    return _little(piece.astype("=i4"))


def _little(flat: Any) -> bytes:
    return (flat.byteswap() if sys.byteorder == "big" else flat).tobytes()


def _listed(values: list, kind: str) -> bytes:
    try:
        flat = arrays.array("f" if kind == "f32s" else "i", values)
    except OverflowError:
        raise NotCapturable(_NO_F32 if kind == "f32s" else _NO_I32) from None
    if kind == "f32s" and any(map(math.isinf, flat)) and any(math.isinf(one) and not math.isinf(two) for one, two in zip(flat, values)):
        raise NotCapturable(_NO_F32)
    if sys.byteorder == "big":
        flat.byteswap()
    return flat.tobytes()


def not_a_number(obj: Any, name: str, *, literal: bool) -> str:
    """Why an object is no number that a function may use."""
    if is_array(obj):
        if len(obj.shape) == 0:
            return f"`{name}` has the dtype {obj.dtype}: captured are integers, floats and bools"
        return f"`{name}` is a tensor of shape {tuple(obj.shape)}: index it, as in `{name}[q]`"
    if literal:
        return f"{shown(obj)} is no number or bool: a device function has scalars only"
    return f"`{name}` is a {type(obj).__name__}: captured are ints, floats, bools, and tensors that are indexed"
