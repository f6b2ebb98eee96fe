"""Calls in Python functions: arguments by name and in any order, methods, decorators, operators that give a value."""

from __future__ import annotations

import functools
import itertools
import math

import pytest

from refusals import refused
from test_functions import check
from tilewright import mask_mod, score_mod

torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is what calls are compared with")
np = pytest.importorskip("numpy", reason="numpy is not installed")
F = torch.nn.functional

tau, offset = torch.tensor(0.75), 3

# Each differs from the same call with its arguments exchanged.
BY_NAME = [
    lambda s, b, h, q, kv: torch.where(q >= kv, other=-s, input=s),
    lambda s, b, h, q, kv: torch.where(other=s, input=-s, condition=q >= kv),
    lambda s, b, h, q, kv: torch.sub(other=s, input=kv) + 0.0,
    lambda s, b, h, q, kv: torch.subtract(s, other=kv),
    lambda s, b, h, q, kv: torch.sub(x2=s, x1=kv) + 0.0,
    lambda s, b, h, q, kv: torch.div(other=4, input=s),
    lambda s, b, h, q, kv: torch.div(s, 4, rounding_mode=None, out=None),
    lambda s, b, h, q, kv: torch.add(s, q, alpha=1),
    lambda s, b, h, q, kv: torch.pow(exponent=2, input=s) + s.pow(exponent=3) / 100,
    lambda s, b, h, q, kv: torch.remainder(other=7, input=q - kv) + torch.fmod(other=5, input=q - kv) + s,
    lambda s, b, h, q, kv: torch.clamp(max=2, input=s, min=-1) + s.clamp(max=0.5) + torch.clip(s, max=tau),
    lambda s, b, h, q, kv: s.clamp(min=offset).clamp(None, 9),
    lambda s, b, h, q, kv: torch.full_like(fill_value=2.0, input=s) + torch.full_like(s, 3, dtype=torch.float32) + s.new_full((), fill_value=4),
    lambda s, b, h, q, kv: s.where(q >= kv, float("-inf")),
    lambda s, b, h, q, kv: s.where(other=-s, condition=q >= kv),
    lambda s, b, h, q, kv: torch.maximum(other=s, input=tau) - torch.minimum(s, other=tau),
    lambda s, b, h, q, kv: torch.where(torch.ge(other=q, input=kv), s, 0) + torch.where(q.le(other=kv), 1, 0),
    lambda s, b, h, q, kv: F.softplus(s, beta=1, threshold=20) + F.relu(input=s, inplace=False),
    lambda s, b, h, q, kv: torch.exp(input=-s.abs()) + torch.tanh(input=s),
    lambda s, b, h, q, kv: tau.where(q >= kv, s) + torch.tensor(2.5).clamp(max=s),
]


@pytest.mark.parametrize("at", range(len(BY_NAME)))
def test_arguments_by_name(at):
    check("score_mod", BY_NAME[at], tensors=True)


def test_arguments_of_numpy_and_python():
    check("score_mod", lambda s, b, h, q, kv: np.clip(s, a_min=-1, a_max=2) + np.clip(s, -2, 0.5), tensors=False)
    check("score_mod", lambda s, b, h, q, kv: np.clip(s, max=1, min=-1) + np.subtract(s, q, dtype=None), tensors=False)
    check("score_mod", lambda s, b, h, q, kv: np.where(q > kv, s, -s) + np.full_like(s, fill_value=3.0), tensors=False)
    check("score_mod", lambda s, b, h, q, kv: math.log(abs(s) + 1, 10) + math.log(q + 1) + pow(s, exp=2), tensors=False)
    check("score_mod", lambda s, b, h, q, kv: math.pow(q, 2) + math.fmod(s, 2.5) + math.fmod(q - kv, 3), tensors=False)
    check("score_mod", lambda s, b, h, q, kv: math.remainder(s, 2.5) + math.remainder(q - kv, 4) + math.remainder(s, -0.7), tensors=False)


REFUSED = [
    (lambda s, b, h, q, kv: torch.div(s, 2, rounding_mode="floor"), "`div` is not supported with `rounding_mode`, found 'floor'", "write `input // other`"),
    (lambda s, b, h, q, kv: s.div(2, rounding_mode="trunc"), "`torch.trunc(input / other)`"),
    (lambda s, b, h, q, kv: torch.add(s, q, alpha=2), "`add` is not supported with `alpha`, found 2: write `input + alpha * other`"),
    (lambda s, b, h, q, kv: s.sub(q, alpha=kv), "`alpha`, found a value of the GPU"),
    (lambda s, b, h, q, kv: torch.add(s, q, out=tau), "`out`", "a device function returns its value and changes no tensor"),
    (lambda s, b, h, q, kv: F.relu(s, inplace=True), "`inplace`, found True"),
    (lambda s, b, h, q, kv: F.softplus(s, beta=2), "write `softplus(beta * x) / beta`"),
    (lambda s, b, h, q, kv: F.gelu(s), "`approximate=\"tanh\"`"),
    (lambda s, b, h, q, kv: torch.add(s, q, beta=1), "`add` has no parameter `beta`: it has `input`, `other`, `alpha`, `out`"),
    (lambda s, b, h, q, kv: np.add(s, x2=q), "`add(x1, x2, /)` does not take these arguments: 'x2' parameter is positional only"),
    (lambda s, b, h, q, kv: np.add(s, q, dtype=np.float64), "`.to(dtype)` of the result"),
    (lambda s, b, h, q, kv: np.add(s, q, where=q > kv), "write `torch.where(condition, a, b)`"),
    (lambda s, b, h, q, kv: torch.where(q > kv, s), "`where(condition, input, other)` does not take these arguments: missing"),
    (lambda s, b, h, q, kv: torch.clamp(min=s), "missing a required argument: 'input'"),
    (lambda s, b, h, q, kv: s.clamp(), "`clamp` takes `min`, `max` or both"),
    (lambda s, b, h, q, kv: torch.exp(s, s, s), "too many positional arguments"),
    (lambda s, b, h, q, kv: torch.max(s, 0), "a number is a dimension here: write `torch.maximum`"),
    (lambda s, b, h, q, kv: torch.max(s, dim=0), "`max` has no parameter `dim`"),
    (lambda s, b, h, q, kv: max(q, kv, key=abs) + s, "`key`"),
    (lambda s, b, h, q, kv: pow(q, 2, 5) + s, "write `base ** exp % mod`"),
    (lambda s, b, h, q, kv: s.softplus(), "`.softplus()` of a value of the GPU is not supported"),
    (lambda s, b, h, q, kv: s.to(torch.int8), "`int8` is no type of a score or mask function"),
    (lambda s, b, h, q, kv: s.new_zeros((3,)), "the size is `()`"),
    (lambda s, b, h, q, kv: torch.full_like(q, math.inf), "inf is no int32"),
    (lambda s, b, h, q, kv: s * s.detach(), "leave `.detach()` out"),
    (lambda s, b, h, q, kv: s ** 1e30, "1e+30 is no exponent of a device function"),
    (lambda s, b, h, q, kv: s + 1e300, "1e+300 does not fit an f32"),
]  # fmt: skip


@pytest.mark.parametrize("at", range(len(REFUSED)))
def test_what_is_outside_is_refused_with_what_to_write(at):
    function, *needed = REFUSED[at]
    refused("score_mod", function, *needed)


def test_decorated_functions():
    def twice(function):
        @functools.wraps(function)
        def inner(*args, **kwargs):
            return function(*args, **kwargs) * 2

        return inner

    def shifted(by):
        def decorate(function):
            @functools.wraps(function)
            def inner(score, *args):
                return function(score + by, *args)

            return inner

        return decorate

    @twice
    @shifted(0.5)
    def bias(score, b, h, q, kv, slope=0.25):
        return score - slope * (q - kv)

    made = check("score_mod", bias, tensors=True)
    assert made.__name__ == "bias" and made.captures["by"] == 0.5

    @twice
    def helper(x, y=1, *, scale=2.0):
        return x * scale + y

    options = {"scale": 0.5, "y": 3}
    check("score_mod", lambda s, b, h, q, kv: helper(s) + helper(y=q, x=kv) + helper(s, scale=3.0) + helper(s, **options), tensors=True)
    cached = functools.cache(lambda b, h, q, kv: q >= kv)
    assert mask_mod(cached).run(0, 0, 2, 1) is True
    # What a decorator says of the parameters is not what the code has.
    bias.__signature__ = 5
    check("score_mod", bias, tensors=True)
    refused("score_mod", lambda s, b, h, q, kv: helper(s, y=1, **options), "`y` is given twice")


def test_and_and_or_give_a_value():
    window, nothing, mode = 0, None, ""
    score = check("score_mod", lambda s, b, h, q, kv: s + (window or 128) + (nothing or 2) * (q and 3) + (h or kv), tensors=True)
    assert score.captures["window"] == 128
    assert score.bind(window=5).run(0.0, 0, 1, 0, 0) == 6.0
    check("score_mod", lambda s, b, h, q, kv: (s and q) + (0 or s) + (h and 2.5) + (q > kv and 7), tensors=True)
    check("mask_mod", lambda b, h, q, kv: (mode or "causal") == "causal" and q >= kv, tensors=True)
    check("mask_mod", lambda b, h, q, kv: not (q and kv) or h in (1, 2) and not q % 3, tensors=True)
    check("score_mod", lambda s, b, h, q, kv: s if q and kv or h else -s, tensors=True)


def test_integers_stay_integers():
    # 46,341² does not fit in what f32 holds exactly.
    made = score_mod(lambda s, b, h, q, kv: (torch.square(q) - 46_339 * 46_341) * 1.0)
    assert made.run(0.0, 0, 0, 46_340, 0) == 1.0
    relu = score_mod(lambda s, b, h, q, kv: (F.relu(q) - 16_777_216) * 1.0)
    assert relu.run(0.0, 0, 0, 16_777_217, 0) == 1.0
    assert "as f32" not in mask_mod(lambda b, h, q, kv: torch.square(q) == kv).source


def test_integers_wrap_as_those_of_torch():
    """What may go beyond an i32 may have any sign: the remainder and the quotient round down all the same."""
    big = 70_000
    positions = [torch.tensor([n // 7 % 2, n % 4, n * 2_503 % 200_000, n * 3_001 % 200_000], dtype=torch.int32) for n in range(400)]
    for function in (
        lambda b, h, q, kv: (q * 1_103_515_245 + kv * 12_345) % 100 < 10,
        lambda b, h, q, kv: ((q + 1) ** 2 * 1_000_003) % 97 < 10,
        lambda b, h, q, kv: q**2 % 3 == 1,
        lambda b, h, q, kv: torch.square(q * big) // 5 % 97 < 30,
        lambda b, h, q, kv: (q * big * big) // 7 % 2 == 0,
        lambda b, h, q, kv: torch.remainder(torch.mul(q, 99_991) + kv + kv + kv, 11) > 5,
        lambda b, h, q, kv: abs(q * 65_536 * 32_768) % 7 == 0,
        lambda b, h, q, kv: torch.floor_divide(abs(q * kv * 3), 1_000) % 2 == 0,
    ):
        made = mask_mod(function)
        for position in positions:
            assert made.run(*position.tolist()) is bool(function(*position)), (position, made.source)
    ends = torch.tensor([-(2**31), 2 - 2**31, -1, 0, 5, 2**31 - 1], dtype=torch.int32)
    for function in (
        lambda b, h, q, kv: ends[q] // 3 % 4 == kv,
        lambda b, h, q, kv: ends[q] // -4 % 4 == kv,
        lambda b, h, q, kv: ends[q] // (kv + 2) < -715_827_882,
        lambda b, h, q, kv: abs(ends[q]) % 7 > 3,
        lambda b, h, q, kv: (ends[q] - ends[kv]) // 2 % 3 == 1,
        lambda b, h, q, kv: abs(ends[q] - ends[kv]) // 2 % 3 == 1,
        lambda b, h, q, kv: -ends[q] == ends[kv] or (~ends[q]) % 3 == 1,
    ):
        made = mask_mod(function)
        for q, kv in itertools.product(range(6), repeat=2):
            assert made.run(0, 0, q, kv) is bool(function(0, 0, torch.tensor(q), torch.tensor(kv))), (q, kv, made.source)
    # Where it fits, there is nothing to correct.
    assert "if" not in mask_mod(lambda b, h, q, kv: (q + kv + 1) % 7 + (2 * q + 1) // 3 + abs(q - kv) % 5 > h).source


def test_floor_division_of_floats():
    third = check("score_mod", lambda s, b, h, q, kv: s // 0.1 + s // -0.7 + (q * 0.1) // 0.1 + 3.5 // (s * s + 0.125), tensors=True)
    # 1.0 / 0.1 rounds to 10, yet 0.1 in f32 is more than a tenth.
    assert third.run(0.0, 0, 0, 0, 0) == float(3.5 // 0.125)
    one = score_mod(lambda s, b, h, q, kv: s // 0.1)
    by = torch.tensor([0.1, -0.1, 3.0, -7.0, 1e6, -1e20, 3e38, 1e-38, math.inf, -math.inf, 0.0])
    any_ = score_mod(lambda s, b, h, q, kv: s // by[q])
    for value in (1.0, -1.0, 0.3, 0.7, 1e9, -1e9, math.inf, -math.inf, -56_900_804.0, -97_337_360.0, 2.5, -1e-45):
        pairs = [(one.run(value, 0, 0, 0, 0), torch.tensor(value) // 0.1)]
        pairs += [(any_.run(value, 0, 0, q, 0), torch.tensor(value) // by[q]) for q in range(len(by))]
        for at, (found, expected) in enumerate(pairs):
            assert found == expected.item() or math.isnan(found) and math.isnan(expected.item()), (value, at)
    by_zero = score_mod(lambda s, b, h, q, kv: 2.5 // s)
    assert by_zero.run(0.0, 0, 0, 0, 0) == math.inf and by_zero.run(-0.0, 0, 0, 0, 0) == -math.inf


def test_ranges_are_arithmetic():
    n = 17_437
    for numbers in (range(n), range(3, 30), range(30, -5, -3), range(5, 60, 7), range(-20, 20, 4), range(4, 4)):
        # Python compares a tensor with each number.
        made = check("mask_mod", lambda b, h, q, kv, numbers=numbers: (q - kv) in numbers, tensors=len(numbers) < 100)
        assert len(made.source) < 400
    check("mask_mod", lambda b, h, q, kv: q not in range(2, n, 3) or kv * 0.5 in range(5), tensors=False)
    check("mask_mod", lambda b, h, q, kv: q not in range(2, 60, 3) or kv * 0.5 in range(5), tensors=True)
    # Its ends are captures, as other values are.
    short, long_ = (mask_mod(lambda b, h, q, kv, m=m: q in range(m)) for m in (8, 9))
    assert short.source == long_.source and not short.run(0, 0, 8, 0) and long_.run(0, 0, 8, 0)


def test_bools_of_python_are_told_from_bools_of_torch():
    check("mask_mod", lambda b, h, q, kv: ~(q > kv) & ~torch.logical_not(h == 1), tensors=True)
    for function in (lambda b, h, q, kv: ~(not q), lambda b, h, q, kv: ~(q in (1, 2)), lambda b, h, q, kv: ~bool(q), lambda b, h, q, kv: ~(int(q) > 2)):
        refused("mask_mod", function, "`~` of a Python bool is a number: use `not`")
    refused("mask_mod", lambda b, h, q, kv: (int(q) > 2) is True, "`is` is for None here")
    refused("mask_mod", lambda b, h, q, kv: q is kv, "`is` is for None here")


def test_assignments_in_place():
    """Python changes a tensor in place, under all of its names."""

    def read_later(score, b, h, q, kv):
        kept = score
        score += 1
        return kept

    def new_name(score, b, h, q, kv):
        kept = score.clone()
        score += 1
        return kept + score

    def in_a_helper(x):
        x += 1
        return x

    def widened(score, b, h, q, kv):
        q += 0.5
        return score + q

    def twice(score, b, h, q, kv):
        kept = other = score * 2
        kept += 1
        return other

    def in_a_tuple(score, b, h, q, kv):
        both = (score * 2, q)
        first = both[0]
        first += 1
        return both[0]

    def picked(score, b, h, q, kv):
        kept = score * 2
        if q > kv:
            kept = score
        score += 1
        return kept

    def returned(x, y):
        if x > y:
            return x
        return y

    def result(score, b, h, q, kv):
        kept = returned(score, q)
        score += 1
        return kept

    def new_ones(score, b, h, q, kv):
        whole, low, number = q.floor(), q.clamp(min=0), q.item()
        chosen, cut = torch.where(q > kv, q, kv), torch.trunc(q)
        whole += 1
        low += 2
        number += 3
        chosen += 4
        cut += 5
        return score + q + kv + whole + low + number + chosen + cut

    refused("score_mod", read_later, "`kept` was changed in place through `score`: write `score = score …`")
    refused("score_mod", lambda s, b, h, q, kv: in_a_helper(s) + s, "`s` was changed in place through `x`")
    refused("score_mod", widened, "`q` is a tensor of i32, which holds no f32")
    assert score_mod(new_name).run(2.0, 0, 0, 0, 0) == 5.0
    check("score_mod", lambda s, b, h, q, kv: in_a_helper(s * 2), tensors=True)
    refused("score_mod", twice, "`other` was changed in place through `kept`")
    refused("score_mod", in_a_tuple, "`both` was changed in place through `first`")
    # What Python chooses is one of the tensors, and changes with it.
    for function in (picked, result):
        refused("score_mod", function, "`kept` was changed in place through `score`")
    check("score_mod", new_ones, tensors=True)


def test_choices_are_changed_in_place_too():
    def changed(kept, x):
        x += 1
        return kept

    for function in (
        lambda s, b, h, q, kv: changed(s if q > kv else s * 2, s),
        lambda s, b, h, q, kv: changed(s or q, s),
        lambda s, b, h, q, kv: changed(q > kv and s, s),
        lambda s, b, h, q, kv: changed(max(s, q), s),
        lambda s, b, h, q, kv: changed(min(q, 2.5, s), s),
    ):
        refused("score_mod", function, "`kept` was changed in place through `x`")


def test_a_variable_is_the_functions_own():
    def early(score, b, h, q, kv):
        bias = score * offset
        offset = 2  # noqa: F841
        return bias

    refused("score_mod", early, "`offset` is read before it is assigned here")
