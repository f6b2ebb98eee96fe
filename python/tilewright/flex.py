"""Mask functions as FlexAttention calls them: the Python function of a device function."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any, Callable, Optional

from .functions import DeviceFunction


def causal(b: Any, h: Any, q: Any, kv: Any) -> Any:
    """The built-in causal mask function."""
    return q >= kv


def python_function(mask_mod: Any) -> Optional[Callable]:
    """The Python function of a mask's `mask_mod`; None for None.

    Raises TypeError for what has none, and ValueError where it cannot be given the values that were bound.
    """
    if mask_mod is None:
        return None
    if isinstance(mask_mod, str) and mask_mod == "causal":
        return causal
    if not isinstance(mask_mod, DeviceFunction) or mask_mod.kind != "mask_mod":
        raise TypeError(
            f"the mask's mask_mod is {mask_mod!r}, which has no Python function for FlexAttention: needed an object of tilewright.mask_mod, "
            '"causal" or None'
        )
    return _bound(mask_mod, mask_mod.bound)


def _bound(mask_mod: DeviceFunction, values: dict[str, Any]) -> Callable:
    """The Python function with values in the place of what it closes over, of its globals and of its defaults."""
    function = mask_mod.function
    if not values:
        return function
    parameters = {name: value for name, value in values.items() if name in inspect.signature(function).parameters}
    others = {name: value for name, value in values.items() if name not in parameters}
    if others and not isinstance(function, types.FunctionType):
        raise ValueError(
            f"the mask's mask_mod was bound to {', '.join(others)}, and its {type(function).__name__} cannot be given other values for "
            "FlexAttention: make the function with these values, and the mask with it"
        )
    if others:
        function = _with_values(function, others)
    return functools.partial(function, **parameters) if parameters else function


def _with_values(function: types.FunctionType, values: dict[str, Any]) -> types.FunctionType:
    """A copy of the function that reads these values where it reads variables of these names."""
    code, cells = function.__code__, function.__closure__ or ()
    closure = [types.CellType(values[n]) if n in values else cell for n, cell in zip(code.co_freevars, cells)]
    namespace = {**function.__globals__, **{n: value for n, value in values.items() if n not in code.co_freevars}}
    made = types.FunctionType(code, namespace, function.__name__, function.__defaults__, tuple(closure))
    made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
    return made
