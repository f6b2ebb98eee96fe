"""PyTorch, when it is there: looked up at the first call with a tensor of it, never at import."""

from __future__ import annotations

import sys
from typing import Any

from . import _native
from ._native import Error

#: The oldest PyTorch that the operators are registered with.
OLDEST = (2, 6)

_bound: Any = None


def torch_of(value: object) -> Any:
    """The module `torch` when `value` is a tensor of it, else None.

    A tensor cannot exist before its module was imported: nothing is imported here.
    """
    if _bound is not None:
        return _bound if isinstance(value, _bound.Tensor) else None
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    if tensor is None or not isinstance(value, tensor):
        return None
    return bind()


def bind() -> Any:
    """Imports PyTorch and registers the operators `tilewright::…` with it, once.

    Raises:
        tilewright.Error: PyTorch is missing, or older than 2.6.
    """
    global _bound
    if _bound is not None:
        return _bound
    try:
        import torch
    except ImportError as error:
        raise Error(
            "PyTorch is not installed: `pip install torch`, or call with numpy arrays, which run on the CPU"
        ) from error
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if found < OLDEST:
        raise Error(
            f"PyTorch {torch.__version__} is too old, needed 2.6 or newer: `pip install --upgrade torch`"
        )
    _native.bind_torch(torch)
    from . import ops  # noqa: F401  (importing registers)

    _bound = torch
    return torch
