"""Random programs: the translation gives what PyTorch computes from the same function on tensors without dimensions.

``TILEWRIGHT_PROGRAMS=5000`` makes that many programs a test, other ones at each run.
"""

from __future__ import annotations

import math
import os
import random

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: it is what the translation is compared with")
pytest.importorskip("numpy", reason="numpy is not installed: programs capture its arrays")
pytest.importorskip("hypothesis", reason="hypothesis is not installed: it makes the programs")

import torch
from hypothesis import HealthCheck, Phase, event, given, settings

from programs import BATCH, HEADS, POSITIONS, function_of, programs, space
from tilewright import TranslationError, mask_mod, score_mod

COUNT = int(os.environ.get("TILEWRIGHT_PROGRAMS", 0))
many = settings(
    max_examples=COUNT or 120,
    derandomize=not COUNT,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


def elements(text: str, count: int = 12) -> list[tuple]:
    """Scores that f32 holds exactly, zero and large ones among them, and positions."""
    pick = random.Random(text)
    scores = [0.0, -100.0, 95.25, *(pick.randrange(-40, 40) / 4 for _ in range(count - 3))]
    return [(s, pick.randrange(BATCH), pick.randrange(HEADS), pick.randrange(POSITIONS), pick.randrange(POSITIONS)) for s in scores]


def expected(function, kind: str, element: tuple, dtype, *, slope: bool = False):
    """PyTorch's value, computed in a precision; None where it raises. With ``slope``, its derivative by the score."""
    score, *at = element
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        score = torch.tensor(score, dtype=dtype, requires_grad=slope)
        position = [torch.tensor(i, dtype=torch.int32) for i in at]
        # In-place changes of a leaf that has a gradient are PyTorch's limit, not the function's.
        value = function(*((score * 1, *position) if kind == "score_mod" else position))
        if not slope:
            return float(value)
        value = torch.as_tensor(value)
        if not value.requires_grad:
            return 0.0
        (found,) = torch.autograd.grad(value, score, allow_unused=True)
        return 0.0 if found is None else float(found)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError):
        return None
    finally:
        torch.set_default_dtype(before)


def agrees(found: float, single: float, double: float) -> bool:
    """Whether a value is right. Where f32 and f64 differ, a rounding has decided, and ours may too."""
    if math.isnan(single) or math.isnan(double):
        return True
    if math.isinf(single) or math.isinf(double):
        return single != double or found == single
    if not math.isclose(single, double, rel_tol=1e-3, abs_tol=1e-3):
        return True
    return math.isclose(found, double, rel_tol=1e-3, abs_tol=1e-3)


def translated(kind: str, text: str, seen: list):
    """The function of a text and its translation, None where that is refused."""
    function = function_of(text, space())
    try:
        made = {"score_mod": score_mod, "mask_mod": mask_mod}[kind](function)
    except TranslationError as error:
        event(error.reason[:60])
        seen.append(False)
        return function, None
    seen.append(True)
    return function, made


@pytest.mark.parametrize("kind", ["score_mod", "mask_mod"])
def test_values(kind):
    seen: list[bool] = []

    @many
    @given(programs(kind))
    def compared(text):
        function, made = translated(kind, text, seen)
        for element in elements(text) if made else ():
            single, double = (expected(function, kind, element, dtype) for dtype in (torch.float32, torch.float64))
            if single is None or double is None:
                continue
            found = float(made.run(*(element if kind == "score_mod" else element[1:])))
            assert agrees(found, single, double), f"{element}: found {found}, PyTorch {single}\n{text}\n{made.source}\n{made.captures}"

    compared()
    # The rest is refused: a test that is passed by refusing everything would say nothing.
    assert sum(seen) > 0.6 * len(seen), f"{sum(seen)} of {len(seen)} programs were translated"


def test_derivatives():
    seen: list[bool] = []

    @many
    @given(programs("score_mod", smooth=True))
    def compared(text):
        function, made = translated("score_mod", text, seen)
        for element in elements(text) if made else ():
            # Off the kinks, which lie at multiples of 1/4.
            element = (element[0] * 1.0009765625 + 0.03125, *element[1:])
            single, double = (expected(function, "score_mod", element, dtype, slope=True) for dtype in (torch.float32, torch.float64))
            if single is None or double is None:
                continue
            found = made.gradient(*element)
            assert agrees(found, single, double), f"{element}: found {found}, PyTorch {single}\n{text}\n{made.source}\n{made.captures}"

    compared()
    assert sum(seen) > 0.6 * len(seen), f"{sum(seen)} of {len(seen)} programs were translated"
