"""PyTorch, when it is there: looked up at the first call with a tensor of it, never at import."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any, Callable

from . import _native
from ._native import Error

#: The oldest PyTorch that the operators are registered with.
OLDEST = (2, 6)

_bound: Any = None

#: Registers the operators. The package says how: they stand above this module.
register: Callable[[], None]


def torch_of(value: object) -> Any:
    """The module `torch` when `value` is a tensor of it, else None."""
    if not _is_bound():
        return bind() if _is_tensor(value) else None
    return _bound if isinstance(value, _bound.Tensor) else None


def _is_bound() -> bool:
    """Whether PyTorch was imported and the operators are registered with it, which is done here the first time.

    A tensor cannot exist before its module was imported: nothing is imported here.
    """
    if _bound is None and sys.modules.get("torch") is not None:
        # Arrays need no PyTorch, and who passes a tensor of one that is too old is told.
        with contextlib.suppress(Error):
            bind()
    return _bound is not None


# TorchDynamo calls it instead of tracing it (`torch.compiler.assume_constant_result`, which is not there to be called yet): the first
# call of all may come inside of torch.compile(fullgraph=True), and registering operators cannot be traced.
_is_bound._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_tensor(value: object) -> bool:
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return isinstance(tensor, type) and isinstance(value, tensor)


def bind() -> Any:
    """Imports PyTorch and registers the operators `tilewright::…` with it, once.

    Raises:
        tilewright.Error: PyTorch is missing, older than 2.6, or another module has its name.
    """
    global _bound
    if _bound is not None:
        return _bound
    try:
        import torch
    except ImportError as error:
        raise Error(
            f"PyTorch cannot be imported ({error}): `pip install torch`, or call with numpy arrays, which run on the CPU"
        ) from error
    version = re.match(r"(\d+)\.(\d+)", str(getattr(torch, "__version__", "")))
    if version is None or not isinstance(getattr(torch, "Tensor", None), type):
        where = getattr(torch, "__file__", None) or "made by a program, without a file"
        raise Error(
            f"the module `torch` that is loaded ({where}) is not PyTorch, for it has no version or no Tensor: take it out of sys.modules or "
            "off sys.path, or call with numpy arrays, which run on the CPU"
        )
    if (int(version[1]), int(version[2])) < OLDEST:
        raise Error(
            f"PyTorch {torch.__version__} is too old, needed 2.6 or newer: `pip install --upgrade torch`"
        )
    _native.bind_torch(torch)
    register()
    _bound = torch
    return torch
