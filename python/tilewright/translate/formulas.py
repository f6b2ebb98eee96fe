"""Functions that the GPU does not have, written in Python with those that it has, and translated as a user's are.

The derivative is made of the formula by the rules of differentiation. So a formula is one whose value *and* derivative are
right everywhere: neither overflows where the result does not, for ∞ · 0 would be NaN, and no part of it has a kink where
the function has none.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import replace
from typing import Any, Callable

from .walker import Walker


def formula(text: str, *, nonneg: bool = False) -> Callable[..., Any]:
    """A function of ``x`` and ``y``, floats: the statements of its body. It may call the functions of torch by their names."""

    @functools.cache
    def body() -> list[ast.stmt]:
        lines = "\n".join(f"    {line.strip()}" for line in text.strip().splitlines())
        return ast.parse(f"def formula(x, y):\n{lines}").body[0].body

    def handler(walk: Walker, node: ast.AST, *values: Any) -> Any:
        floats = [walk.named(walk.do.to_f32(walk.symbol(value, node)), name) for value, name in zip(values, "xy")]
        result = walk.symbol(walk.formula(body(), dict(zip("xy", floats)), node), node)
        return replace(result, nonneg=nonneg, weak=False)

    return handler


# ln(1 + x): what 1 + x loses by its rounding, over 1 + x, is what the logarithm lacks.
LOG1P = formula("""
    u = 1 + x
    lost = x - (u - 1)
    whole = log(u)
    return whole + lost / u if abs(lost) > 0 else whole
""")

# Near 0 there is no difference of near numbers in it.
EXPM1 = formula("""
    e = exp(x)
    return tanh(x * 0.5) * (e + 1) if abs(x) < 0.5 else e - 1
""")

# The exponential of a number that is not above 0 does not overflow.
SIGMOID = formula("""
    small = exp(x if x < 0 else -x)
    part = 1 / (1 + small)
    return small * part if x < 0 else part
""", nonneg=True)  # fmt: skip

# Not with max(x, 0) and abs(x), whose derivatives jump at 0.
SOFTPLUS = formula("""
    small = exp(-x if x > 0 else x)
    above = log1p(small)
    return x + above if x > 0 else above
""", nonneg=True)  # fmt: skip

LOGSIGMOID = formula("return -softplus(-x)")

SILU = formula("return x * sigmoid(x)")

# Beyond 10 the hyperbolic tangent is 1 in f32, and x³ may overflow.
GELU_TANH = formula("""
    near = x.clamp(-10, 10)
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (near + 0.044715 * near * near * near)))
""")

RSQRT = formula("return 1 / sqrt(x)", nonneg=True)
RECIPROCAL = formula("return 1 / x")
LOG10 = formula("return log2(x) * 0.30102999566398120")
TAN = formula("return sin(x) / cos(x)")
ISNAN = formula("return x != x")
ISINF = formula("return abs(x) == inf")
ISFINITE = formula("return abs(x) < inf")

# Python's math.remainder: x less the multiple of y nearest to it, the even one of two.
REMAINDER = formula("""
    size = abs(x)
    step = abs(y)
    low = fmod(size, step)
    high = step - low
    odd = fmod(0.5 * (size - low), step)
    rest = low if low < high else -high if low > high else low - 2 * odd
    return -rest if x < 0 else rest
""")
