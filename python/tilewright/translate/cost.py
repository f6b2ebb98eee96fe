"""What Python would compute for ever at translation, or would need all memory for: known before it is computed."""

from __future__ import annotations

import math
import operator
from typing import Any

# Integers that are computed at translation may have this many bits.
MAX_BITS = 1 << 16

# As many items may be walked over, or made, by `tuple(range(…))` and its like, and as many characters of texts: in all.
MOST_ITEMS = 1 << 20

_WALKED = (tuple, list, sum, all, any, min, max, math.fsum, math.prod)


def bits(function: Any, known: list) -> int:
    """How many bits an integer that a function computes may have, where it may be many."""
    sizes = [item.bit_length() for item in known if isinstance(item, int)]
    if function in (math.factorial, math.perm, math.comb) and sizes:
        return sizes[0] * max(known[0], 0) if isinstance(known[0], int) else 0
    if function is math.prod and known and isinstance(known[0], (list, tuple, range)) and len(known[0]) <= MOST_ITEMS:
        return sum(item.bit_length() for item in known[0] if isinstance(item, int))
    if len(sizes) < 2 or not all(isinstance(item, int) for item in known[:2]):
        return 0
    if function in (operator.pow, pow):
        return sizes[0] * max(known[1], 0) if sizes[0] > 1 else 0
    if function is round:
        return 4 * max(-known[1], 0)
    return {operator.lshift: sizes[0] + max(known[1], 0), operator.mul: sizes[0] + sizes[1]}.get(function, 0)


def items(function: Any, known: list) -> int:
    """How many items or characters a function walks over or makes."""
    lengths = [len(item) if isinstance(item, (range, str, bytes, list, tuple)) else 0 for item in known]
    if function is operator.mul and len(known) == 2:
        return sum(length * other for length, other in zip(lengths, reversed(known)) if isinstance(other, int) and other > 0)
    return sum(lengths) if function is operator.add or function in _WALKED else 0
