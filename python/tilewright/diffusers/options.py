"""The options of `enable`, checked where they are given: the first step that uses them may be minutes later."""

from __future__ import annotations

import copy
import operator

import torch

import tilewright
from tilewright.mask import checked_pair, scored_by_keys, tail_number

#: What is decided by the model.
AUTO = "auto"


class Options:
    """What is kept, what stands for the rest, and which calls stay dense; the processors read it.

    Raises:
        ValueError, TypeError: what `tilewright.sparse_attention` and `tilewright.TokenGrid` raise for these values, and for a
            number of tokens or steps that is none.
    """

    def __init__(self, *, top_k, top_p, block_size, min_tokens, skip_first_steps, grid, tile, tail, scores):
        self.block_size = checked_pair(block_size)
        is_auto = isinstance(tail, str) and tail == AUTO
        if not is_auto:
            tail_number(tail, self.block_size[1])
        self._by_model, self._scores = is_auto, scores
        self._stand_in(None if is_auto else tail)
        self.top_k, self.top_p = top_k, top_p
        self.check_head_dim(64)
        self.min_tokens = _count("min_tokens", min_tokens)
        self.skip_first_steps = _count("skip_first_steps", skip_first_steps)
        self.grid, self.tile = _checked_grid(grid, tile, self.block_size)

    def _stand_in(self, tail):
        self.tail = tail
        self.scores = "keys" if scored_by_keys(self._scores, tail) else "means"

    def of_model(self, in_cubes):
        """The options of one model, whose tokens lie in cubes or not: in raster order a tail is worth little."""
        options = copy.copy(self)
        if self._by_model:
            options._stand_in("block" if in_cubes else None)
        return options

    def check_head_dim(self, head_dim):
        """Raises what the attention of a model with this head dimension would raise at its first call."""
        # Of a fake tensor nothing but its shape would be looked at.
        with torch.utils._python_dispatch._disable_current_modes():
            probe = torch.zeros(1, 1, 1, head_dim, dtype=torch.float16, device="cpu")
            tilewright.block_mask(probe, probe, top_k=self.top_k, top_p=self.top_p, block_size=self.block_size)


def checked_layers(layers):
    """The numbers of `layers` as a list; `None` for all. Whether a model has them is the model's matter."""
    if layers is None:
        return None
    needed = "needed the numbers of transformer blocks in a list, as [0, 1, -1], or None for all"
    if isinstance(layers, (str, bytes)) or not hasattr(layers, "__iter__"):
        raise TypeError(f"layers is {layers!r}, {needed}")
    numbers = []
    for layer in layers:
        number = _whole(layer)
        if number is None:
            raise TypeError(f"layers has {layer!r}, {needed}")
        numbers.append(number)
    return numbers


def _checked_grid(grid, tile, block_size):
    if grid is None:
        if tile is not None:
            raise ValueError(
                f'tile is {tile!r}, and there is no grid to cut into tiles: pass grid="auto" too, or leave tile out'
            )
        return None, None
    if isinstance(grid, str):
        if grid != AUTO:
            raise ValueError(f'grid is {grid!r}, needed "auto", three sizes (t, h, w) or None')
    else:
        grid = _sizes("grid", grid, '"auto", three sizes (t, h, w) or None')
    tile = None if tile is None else _sizes("tile", tile, "three sizes (t, h, w) or None")
    # A grid of one token stands for those that the calls will have.
    tilewright.TokenGrid((1, 1, 1) if grid == AUTO else grid, tile, block_size=block_size)
    return grid, tile


def _sizes(what, sizes, needed):
    if isinstance(sizes, (str, bytes)) or not hasattr(sizes, "__iter__"):
        raise TypeError(f"{what} is {sizes!r}, needed {needed}")
    sizes = tuple(sizes)
    whole = tuple(_whole(size) for size in sizes)
    return sizes if None in whole else whole  # TokenGrid says what is wrong with them


def _count(what, value):
    number = _whole(value)
    if number is None or number < 0:
        raise ValueError(f"{what} is {value!r}, needed a whole number of at least 0")
    return number


def _whole(value):
    """The value as an int, of numpy's too; `None` for what is no whole number."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
