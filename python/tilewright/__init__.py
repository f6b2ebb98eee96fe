"""Tilewright: block-sparse attention for PyTorch and numpy."""

from ._native import VERSION as __version__
from ._native import Error, best_device, gpu_name

__all__ = ["Error", "__version__", "best_device", "gpu_name"]
