"""Tilewright: block-sparse attention for PyTorch and numpy."""

from ._native import VERSION as __version__
from ._native import Error, best_device, gpu_name
from .functions import DeviceFunction, TranslationError, mask_mod, mask_mod_of, score_mod

__all__ = [
    "DeviceFunction",
    "Error",
    "TranslationError",
    "__version__",
    "best_device",
    "gpu_name",
    "mask_mod",
    "mask_mod_of",
    "score_mod",
]
