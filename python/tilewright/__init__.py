"""Tilewright: block-sparse attention for PyTorch, without a build step.

    out = tilewright.sparse_attention(q, k, v, top_k=0.03, top_p=0.2)

Kernels are compiled with NVRTC and tuned at the first call of a size, and found in a cache by every later process. PyTorch's CUDA
tensors run on their GPU without a copy; CPU tensors and numpy arrays run on the CPU executor. PyTorch is no requirement of the
package: it is looked up at the first call with a tensor of it.
"""

import contextlib
import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from . import _native, _torch
from ._native import VERSION as __version__
from ._native import Error, best_device, gpu_name
from .functional import attention, block_mask, sparse_attention
from .functions import DeviceFunction, TranslationError, mask_mod, mask_mod_of, score_mod
from .grid import TokenGrid
from .mask import BLOCK_SIZES, BlockMask

if TYPE_CHECKING:
    from . import diffusers as diffusers
    from .module import SparseAttention

__all__ = [
    "BLOCK_SIZES",
    "BlockMask",
    "DeviceFunction",
    "Error",
    "TokenGrid",
    "TranslationError",
    "__version__",
    "attention",
    "best_device",
    "block_mask",
    "gpu_name",
    "mask_mod",
    "mask_mod_of",
    "score_mod",
    "sparse_attention",
]


def _has_torch() -> bool:
    try:
        spec = importlib.util.find_spec("torch")
    except ValueError:
        # Somebody put a module of that name there that no loader made.
        return False
    # Any folder of that name is a package, without a file of its own.
    return spec is not None and spec.origin is not None


if TYPE_CHECKING or _has_torch():
    __all__ += ["SparseAttention"]

# NVRTC, which compiles the kernels, is a package too: that of this Python, not of the one that is first on the PATH. As Python does,
# entries that are no text are passed over.
_native.set_package_folders([folder for folder in sys.path if isinstance(folder, str) and folder])


def _register() -> None:
    from . import ops  # noqa: F401  (importing registers)


_torch.register = _register

# Operators exist before anything is compiled or exported; without PyTorch, or before it, the first call registers them. A
# PyTorch that is too old is an error of the first call with its tensors: arrays work all the same.
if sys.modules.get("torch") is not None:
    with contextlib.suppress(Error):
        _torch.bind()


def __getattr__(name: str) -> Any:
    # What needs PyTorch is imported when it is asked for.
    if name == "SparseAttention":
        _torch.bind()
        from .module import SparseAttention

        return SparseAttention
    if name == "diffusers":
        return importlib.import_module(".diffusers", __name__)
    raise AttributeError(f"module 'tilewright' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
