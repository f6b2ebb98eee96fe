"""Functions of torch and numpy that are none of a device function: they are refused by name instead of being walked."""

from __future__ import annotations

import types

# Device functions are made of these there: `and_masks`, `or_masks`, `noop_mask`.
_OF_FLEX_ATTENTION = "torch.nn.attention"

_ROOTS = ("torch", "numpy")

_INSTEAD = {
    "elu": "write `torch.where(x > 0, x, torch.expm1(x))`",
    "leaky_relu": "write `torch.where(x > 0, x, 0.01 * x)`",
    "relu6": "write `torch.clamp(x, 0.0, 6.0)`",
    "hardtanh": "write `torch.clamp(x, -1.0, 1.0)`",
    "dropout": "kernels draw no random numbers: leave it out",
    "is_available": "call it outside of the function and capture the result",
}


def refusal(function: types.FunctionType, supported: str) -> str | None:
    """Why a function of a library cannot be walked; None for a user's own."""
    if function.__name__ == "_sliced_mask_mod_error":
        return "it is what FlexAttention puts in the place of a sliced BlockMask's mask_mod: set `sliced.mask_mod = whole.mask_mod`"
    module = function.__globals__.get("__name__")
    if not isinstance(module, str) or module.partition(".")[0] not in _ROOTS or f"{module}.".startswith(f"{_OF_FLEX_ATTENTION}."):
        return None
    instead = _INSTEAD.get(function.__name__, f"it may call {supported}; or call it outside of the function and capture the result")
    return f"`{module}.{function.__qualname__}` is not supported in a device function: {instead}"
