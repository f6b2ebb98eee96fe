"""Score and mask functions from Python: the translation against the Python function, element by element."""

from __future__ import annotations

import functools
import math
import random
import struct

import pytest

import tilewright
from refusals import refused
from tilewright import TranslationError, mask_mod, score_mod

try:
    import torch
except ImportError:
    torch = None
try:
    import numpy as np
except ImportError:
    np = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")
needs_numpy = pytest.mark.skipif(np is None, reason="numpy is not installed")

POSITIONS = 70
HEADS = 4
BATCH = 2


def elements(count: int = 250) -> list[tuple[float, int, int, int, int]]:
    """Scores and positions: the corners, the diagonal, and others."""
    pick = random.Random(7)
    found = [(0.0, 0, 0, 0, 0), (-3.5, 1, 3, 69, 0), (2.25, 0, 1, 0, 69), (1e3, 1, 2, 33, 33), (-1e3, 0, 3, 34, 33)]
    while len(found) < count:
        # Scores are f32: what Python computes with must be one.
        score = struct.unpack("f", struct.pack("f", pick.gauss(0, 3)))[0]
        found.append((score, pick.randrange(BATCH), pick.randrange(HEADS), pick.randrange(POSITIONS), pick.randrange(POSITIONS)))
    return found


def arguments(kind: str, element: tuple, *, tensors: bool) -> tuple:
    """What FlexAttention hands to a function: tensors without dimensions."""
    score, *position = element
    if tensors:
        score, position = torch.tensor(score), [torch.tensor(at, dtype=torch.int32) for at in position]
    return (score, *position) if kind == "score_mod" else tuple(position)


def check(kind: str, function, *, tensors: bool) -> tilewright.DeviceFunction:
    """The translation is the function on every element, to the rounding of f32."""
    made = {"score_mod": score_mod, "mask_mod": mask_mod}[kind](function)
    for element in elements():
        expected = function(*arguments(kind, element, tensors=tensors))
        found = made.run(*arguments(kind, element, tensors=False))
        where = f"{element}: found {found}, expected {expected}\n{made.source}"
        if kind == "mask_mod":
            assert found is bool(expected), where
        else:
            expected = float(expected)
            assert found == expected or math.isclose(found, expected, rel_tol=2e-5, abs_tol=2e-5), where
    return made


# Plain Python: called with Python's numbers.

CAP = 30.0
WINDOW = 13
FLAG = True
STRIDES = (3, 5, 7)


def softcap(score, b, h, q, kv):
    return CAP * math.tanh(score / CAP)


def relative(score, b, h, q, kv):
    return score + (q - kv)


def inverse_distance(score, b, h, q, kv):
    """A docstring is no statement."""
    distance = abs(q - kv)
    return score / (1 + distance)


def stepwise(score, b, h, q, kv):
    if q < kv:
        return -math.inf
    elif q - kv < 8:
        return score
    elif h % 2 == 0 and q % 3 == 1:
        score = score * 0.5
        return score - 1
    return score - math.log(q - kv)


def reassigned(score, b, h, q, kv):
    x = q - kv
    y = 1.5
    if x < 0:
        x = -x
        y += h
    elif x == 0:
        y = 0
    z: float = x * y
    z -= 1
    return score + z


def nested(score, b, h, q, kv):
    if b == 0:
        if h > 1:
            bias = 2.0
        else:
            bias = 0.25 * h
        score += bias
        if q > 40:
            return score * 2
    return score


def floor_division(score, b, h, q, kv):
    x = q - kv
    return score + x // 7 + x // -7 + (x % 7) * 10 + (x % -7) * 100 + (x // (h + 1)) + (x % (h - 9)) + q // 4 + q % 4


def float_remainder(score, b, h, q, kv):
    return score % 2.5 + score % -2.5 + score // 2.5


def powers(score, b, h, q, kv):
    return score**2 + (q - kv) ** 3 + (1 + q) ** 0.5 + 2.0 ** (h - 3) + 0.5**h + (1.0 + q) ** -1 + abs(score) ** 0.5 + (kv - q) ** 2


def built_in(score, b, h, q, kv):
    return min(max(score, -2), 2.5) + max(q, kv, 10) - min(q, kv) + int(score) + float(q) + abs(kv - q)


def of_math(score, b, h, q, kv):
    x = abs(score) + 1
    return math.log(x) + math.log2(x) + math.sqrt(x) + math.floor(score) + math.ceil(score) + math.sin(x) + math.fabs(score) + math.pi


def conditional(score, b, h, q, kv):
    return score if q >= kv else (0.0 if h == 0 else -1e9)


def truthiness(score, b, h, q, kv):
    return score if (q - kv) else score + 1


def bools_as_numbers(score, b, h, q, kv):
    return score + (q >= kv) * 2 + (q == kv) * 0.5 - int(q < kv)


def with_loop(score, b, h, q, kv):
    for stride in STRIDES:
        if (q - kv) % stride == 0:
            score = score + stride
    for step in range(3):
        score = score * 0.5 + step
    return score


def unpacked(score, b, h, q, kv):
    low, high = min(q, kv), max(q, kv)
    (low, high), scale = (high, low), 0.5
    return score + (low - high) * scale


def derived(score, b, h, q, kv):
    return score * (8.0 / HEADS) + h * 2 ** (-WINDOW / HEADS) + math.log2(POSITIONS) + len(STRIDES)


def helper(x, scale=2.0, *, shift=1):
    if x < 0:
        return -x * scale
    return x * scale + shift


def calls_others(score, b, h, q, kv):
    return helper(score) + helper(q - kv, 0.5) + helper(x=kv, shift=h)


def dead_forms(score, b, h, q, kv, bias=None, mode="plain"):
    if bias is not None:
        return score + bias[q, kv].no_such_thing
    if mode == "causal":
        return nonsense(score)  # noqa: F821
    return score + 1


SCORES = [
    softcap, relative, inverse_distance, stepwise, reassigned, nested, floor_division, float_remainder, powers, built_in, of_math,
    conditional, truthiness, bools_as_numbers, with_loop, unpacked, derived, calls_others, dead_forms,
]  # fmt: skip


@pytest.mark.parametrize("function", SCORES, ids=lambda f: f.__name__)
def test_scores_of_plain_python(function):
    check("score_mod", function, tensors=False)


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def chained(b, h, q, kv):
    return 0 <= q - kv < WINDOW


def boolean_operators(b, h, q, kv):
    return (q > kv and not h == 2) or (kv - q > WINDOW and FLAG) or q == kv == 33


def bit_operators(b, h, q, kv):
    return (q >= kv) & (q - kv <= WINDOW) | ((kv < 4) ^ (h == 0))


def membership(b, h, q, kv):
    return h in (0, 3) or q % 8 not in [1, 2]


def dilated(b, h, q, kv):
    return (q - kv) % (1 << 2) == 0 and q >= kv


def prefix_by_batch(b, h, q, kv):
    prefix = 10 if b == 0 else 20
    return kv < prefix or q >= kv


def _(b, h, q, kv):
    return bool(q & 1) == (kv % 2 == 1)


MASKS = [causal, chained, boolean_operators, bit_operators, membership, dilated, prefix_by_batch, _]


@pytest.mark.parametrize("function", MASKS, ids=lambda f: f.__name__)
def test_masks_of_plain_python(function):
    check("mask_mod", function, tensors=False)


def test_combined_functions():
    def both(*functions):
        def combined(b, h, q, kv):
            result = True
            for function in functions:
                result = result & function(b, h, q, kv)
            return result

        return combined

    made = check("mask_mod", both(causal, mask_mod(chained), lambda b, h, q, kv: h != 1), tensors=False)
    assert made.captures == {"WINDOW": WINDOW}
    assert mask_mod(both()).run(0, 0, 0, 5) is True


def test_partials_methods_and_objects():
    def window(b, h, q, kv, size, *, ahead=0):
        return q - kv < size and kv - q <= ahead

    made = check("mask_mod", functools.partial(window, size=9, ahead=2), tensors=False)
    assert made.captures == {"size": 9, "ahead": 2}

    class Bias:
        def __init__(self, slope):
            self.slope = slope

        def __call__(self, score, b, h, q, kv):
            return score - self.slope * abs(q - kv)

        def halved(self, score, b, h, q, kv):
            return self(score, b, h, q, kv) / 2

        __offset = 3

        def __moved(self, q):
            return q + self.__offset

        def private(self, score, b, h, q, kv):
            return score - self.slope * self.__moved(q)

    assert check("score_mod", Bias(0.25), tensors=False).captures == {"slope": 0.25}
    check("score_mod", Bias(0.5).halved, tensors=False)
    check("score_mod", Bias(0.5).private, tensors=False)


def test_lambdas_on_one_line():
    first, second = score_mod(lambda score, b, h, q, kv: score + 1), score_mod(lambda score, b, h, q, kv: score * 2)
    assert (first.run(5, 0, 0, 0, 0), second.run(5, 0, 0, 0, 0)) == (6, 10)
    pair = [lambda b, h, q, kv: q > kv, lambda b, h, q, kv: q < kv]
    assert [mask_mod(f).run(0, 0, 2, 1) for f in pair] == [True, False]
    over_lines = mask_mod(
        lambda b, h, q, kv: (
            q >= kv
        )
    )  # fmt: skip
    assert over_lines.run(0, 0, 2, 2) is True


def test_lambdas_on_one_line_are_told_by_their_instructions_too(monkeypatch):
    """As on Python 3.10, whose code does not know its columns."""
    from tilewright.translate import source

    monkeypatch.setattr(source, "_spans", lambda node, code: True)
    scale, shift = 3, 4
    pair = [lambda score, b, h, q, kv: score * scale, lambda score, b, h, q, kv: score + shift]
    assert [score_mod(f).run(2.0, 0, 0, 0, 0) for f in pair] == [6, 6] and [score_mod(f).run(0.0, 0, 0, 0, 0) for f in pair] == [0, 4]
    pair = [lambda b, h, q, kv: q > kv + 1, lambda b, h, q, kv: q > kv + 2]
    assert [mask_mod(f).run(0, 0, 2, 0) for f in pair] == [True, False]
    monkeypatch.setattr(source, "_same_code", lambda node, code: True)
    refused("mask_mod", pair[0], "several functions of this line could be meant: write each on a line of its own")


def test_nothing_is_changed_by_a_translation():
    numbers = [1, 2]
    refused("score_mod", lambda s, b, h, q, kv: s + numbers.pop(), "`numbers.pop` cannot be called")
    assert numbers == [1, 2]


def test_decorator_keeps_the_function():
    @tilewright.mask_mod
    def seen(b, h, q, kv):
        "Which keys are seen."
        return q >= kv

    assert seen(0, 0, 3, 2) is True and seen.__name__ == "seen" and seen.kind == "mask_mod"
    assert seen.__doc__ == "Which keys are seen."
    assert seen.source.startswith("fn seen(b: i32, h: i32, q: i32, kv: i32) -> bool {")
    assert "return v_q >= v_kv;" in seen.cuda
    assert mask_mod(seen) is seen
    assert repr(seen) == "<tilewright.mask_mod seen()>"
    with pytest.raises(TranslationError, match="it is a mask_mod already, needed a score_mod"):
        score_mod(seen)


# Captures


def make_window(size):
    def window(b, h, q, kv):
        return q - kv < size

    return window


def test_values_change_without_new_text():
    narrow, wide = mask_mod(make_window(4)), mask_mod(make_window(40))
    assert narrow.source == wide.source and narrow.cuda == wide.cuda
    assert narrow != wide and narrow == mask_mod(make_window(4)) and hash(narrow) == hash(mask_mod(make_window(4)))
    assert narrow.captures == {"size": 4} and wide.captures == {"size": 40}
    assert (narrow.run(0, 0, 9, 0), wide.run(0, 0, 9, 0)) == (False, True)
    bound = narrow.bind(size=10)
    assert bound.source == narrow.source and bound.run(0, 0, 9, 0) is True
    with pytest.raises(TranslationError, match="captures no `length`: it has size"):
        narrow.bind(length=3)


def test_types_of_captures():
    whole, real, flag = 2, 0.5, True

    @score_mod
    def typed(score, b, h, q, kv, slope=3, *, shift=1.5):
        return score * real + whole * q if flag else score + slope * shift

    # What only depends on captures is computed by Python, once.
    assert typed.captures == {"real": 0.5, "whole": 2, "slope_shift": 4.5, "flag": True}
    assert "flag: bool" in typed.source and "real: f32" in typed.source and "whole: i32" in typed.source
    assert typed.run(2.0, 0, 0, 3, 0) == 7.0
    assert typed.bind(flag=False).run(2.0, 0, 0, 3, 0) == 6.5


def test_one_variable_is_one_capture_and_equal_values_are_two():
    def windows(a, b_):
        first, second = make_window(a), make_window(b_)
        return lambda b, h, q, kv: first(b, h, q, kv) and first(b, h, kv, q) or second(b, h, q, kv)

    made, same = mask_mod(windows(3, 9)), mask_mod(windows(5, 5))
    assert list(made.captures.values()) == [3, 9]
    assert made.source == same.source


def test_lists_are_slices():
    slopes, ids = [0.5, 0.25, 0.125, 0.0625], tuple(i // 20 for i in range(POSITIONS))
    made = check("score_mod", lambda score, b, h, q, kv: score - slopes[h] * abs(q - kv), tensors=False)
    assert made.captures == {"slopes": tuple(slopes)} and "slopes: &[f32]" in made.source
    check("mask_mod", lambda b, h, q, kv: ids[q] == ids[kv], tensors=False)
    # Python counts from the end.
    check("mask_mod", lambda b, h, q, kv: ids[q - kv] == 2, tensors=False)
    outside = mask_mod(lambda b, h, q, kv: ids[q] == 0)
    assert outside.run(0, 0, 10_000, 0) is True


@needs_numpy
def test_numpy_captures():
    ids = np.repeat(np.arange(7, dtype=np.int64), 10)
    allowed = (np.arange(POSITIONS) % 3 == 0)[None, :].repeat(BATCH, 0)
    bias = np.random.default_rng(1).normal(size=(HEADS, POSITIONS))
    scale = np.float32(0.5)
    made = check("score_mod", lambda score, b, h, q, kv: score * scale + bias[h, q] + bias[h][kv], tensors=False)
    assert set(made.captures) == {"scale", "bias", "bias_size_1"}
    check("mask_mod", lambda b, h, q, kv: (ids[q] == ids[kv]) | allowed[b, kv], tensors=False)
    check("score_mod", lambda score, b, h, q, kv: np.where(q > kv, np.exp(-np.abs(score)), np.maximum(score, 0)), tensors=False)
    beyond = score_mod(lambda score, b, h, q, kv: bias[h, q] + 1)
    assert beyond.run(0.0, 0, 0, POSITIONS, 0) == 1.0


# Torch: called with tensors, as FlexAttention does.


def torch_cases():
    if torch is None:
        return []
    slopes = torch.exp2(-torch.arange(1, HEADS + 1, dtype=torch.float32))
    ids = torch.arange(POSITIONS) // 17
    table = torch.randn(HEADS, 2 * POSITIONS, dtype=torch.float64)
    cube = torch.arange(2 * 3 * 4).reshape(2, 3, 4)
    lengths = torch.tensor([40, 60])
    allowed = torch.rand(POSITIONS) < 0.5
    tau = torch.tensor(0.7)
    negative = torch.finfo(torch.float32).min
    F = torch.nn.functional
    return [
        ("softcap", "score_mod", lambda score, b, h, q, kv: 20 * torch.tanh(score / 20)),
        ("alibi", "score_mod", lambda score, b, h, q, kv: score - slopes[h] * (q - kv).abs()),
        ("alibi_formula", "score_mod", lambda score, b, h, q, kv: score + torch.exp2(-((h + 1) * 8.0 / HEADS)) * (kv - q)),
        ("relative_table", "score_mod", lambda score, b, h, q, kv: score + table[h, q - kv + POSITIONS]),
        ("masked", "score_mod", lambda score, b, h, q, kv: torch.where(q >= kv, score, -float("inf"))),
        ("masked_min", "score_mod", lambda score, b, h, q, kv: torch.where(ids[q] == ids[kv], score, negative)),
        ("temperature", "score_mod", lambda score, b, h, q, kv: score / tau),
        ("gated", "score_mod", lambda score, b, h, q, kv: score * torch.sigmoid(score) + F.relu(score) + F.softplus(score)),
        ("rounded", "score_mod", lambda s, b, h, q, kv: torch.floor(s) + torch.ceil(s) + torch.trunc(s) + torch.sign(s)),
        ("clamped", "score_mod", lambda s, b, h, q, kv: s.clamp(-1, 2) + torch.clamp(s, min=0.5) + (q - kv).clamp(max=h)),
        ("extremes", "score_mod", lambda s, b, h, q, kv: torch.minimum(s, s * s) + torch.maximum(q, kv) + torch.fmin(s, tau)),
        ("roots", "score_mod", lambda s, b, h, q, kv: s.square().sqrt() + torch.rsqrt(1 + s * s) + torch.reciprocal(2 + s.abs())),
        ("logs", "score_mod", lambda s, b, h, q, kv: torch.log(1 + s.abs()) + torch.log1p(s * s) + torch.log10(s.abs() + 2)),
        ("exps", "score_mod", lambda s, b, h, q, kv: torch.exp(-s.abs()) + torch.expm1(-s.abs()) + 2 ** (-s.abs())),
        ("angles", "score_mod", lambda s, b, h, q, kv: torch.sin(s) + torch.cos(q) + torch.cos(0.1 * kv)),
        ("casts", "score_mod", lambda s, b, h, q, kv: s.to(torch.int32) + q.to(torch.float32) / 3 + kv.float() + s.int().to(s.dtype)),
        ("remainders", "score_mod", lambda s, b, h, q, kv: torch.remainder(q - kv, 5) + torch.fmod(q - kv, 5) + torch.fmod(s, 2.0)),
        ("operators", "score_mod", lambda s, b, h, q, kv: torch.add(s, q).sub(kv).mul(2).div(3) + torch.neg(s) + torch.pow(s, 2)),
        ("powers", "score_mod", lambda s, b, h, q, kv: s**3 + (q - kv) ** 2 + torch.pow(2.0, -s.abs()) + s.abs() ** 0.5),
        ("three_dimensions", "score_mod", lambda s, b, h, q, kv: s + cube[b, q % 3, h] + cube[b][kv % 3][h]),
        ("special", "score_mod", lambda s, b, h, q, kv: torch.where(torch.isinf(s) | torch.isnan(s) | ~torch.isfinite(s), 0.0, s)),
        ("constants", "score_mod", lambda s, b, h, q, kv: s + s.new_zeros(()) + torch.full_like(s, 2.5) + torch.ones_like(q) + torch.pi),
        ("documents", "mask_mod", lambda b, h, q, kv: ids[q] == ids[kv]),
        ("documents_causal", "mask_mod", lambda b, h, q, kv: (ids[q] == ids[kv]) & (q >= kv)),
        ("padding", "mask_mod", lambda b, h, q, kv: (q < lengths[b]) & (kv < lengths[b])),
        ("bool_tensor", "mask_mod", lambda b, h, q, kv: allowed[kv] | ~allowed[q]),
        ("logical", "mask_mod", lambda b, h, q, kv: torch.logical_and(q >= kv, torch.logical_not(h == 1)) | torch.ge(kv, 60)),
        ("floor", "mask_mod", lambda b, h, q, kv: (q - kv) // 4 == (kv - q) // 3),
        ("sizes", "mask_mod", lambda b, h, q, kv: q + kv < ids.shape[0] + len(lengths) + ids.numel() - table.size(0)),
    ]


@needs_torch
@pytest.mark.parametrize("case", torch_cases(), ids=lambda case: case[0])
def test_functions_of_torch(case):
    _, kind, function = case
    check(kind, function, tensors=True)


@needs_torch
def test_flex_attention_combinators():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    ids = torch.arange(POSITIONS) // 9
    combined = flex.and_masks(causal, flex.or_masks(make_window(5), lambda b, h, q, kv: ids[q] == ids[kv]))
    made = check("mask_mod", combined, tensors=True)
    assert made.captures["size"] == 5 and len(made.captures["ids"]) == POSITIONS


@needs_torch
def test_mask_mod_of_a_block_mask():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    mask = flex.create_block_mask(make_window(33), B=None, H=None, Q_LEN=256, KV_LEN=256, device="cpu")
    made = tilewright.mask_mod_of(mask)
    assert made.captures == {"size": 33} and made.run(0, 0, 40, 7) is False
    assert tilewright.mask_mod_of(mask) is made
    full = flex.create_block_mask(flex.noop_mask, B=None, H=None, Q_LEN=256, KV_LEN=256, device="cpu")
    assert tilewright.mask_mod_of(full) is None
    assert tilewright.mask_mod(flex.noop_mask).run(0, 0, 0, 9) is True


@needs_torch
def test_captured_tensors_are_read_when_the_function_is_made():
    ids = torch.zeros(8, dtype=torch.int64)
    made = mask_mod(lambda b, h, q, kv: ids[q] == 0)
    ids[3] = 1
    assert made.run(0, 0, 3, 0) is True
    again = mask_mod(made.function)
    assert again.run(0, 0, 3, 0) is False and again.source == made.source and again != made


# Attention: the CPU executor against the Python function evaluated on the whole of a dense attention.

SEQ, DIM = POSITIONS, 16
# Its scores reach 10⁵, where f32 keeps two digits after the point: element by element only.
TOO_STEEP = {"powers"}


def dense(q, k, v, kind: str, function, *, tensors: bool):
    """float64 attention with the function's own values, `[1, heads, seq, d]`."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    scores = (q @ k.swapaxes(-1, -2) / math.sqrt(DIM)).astype(np.float32)
    changed = np.empty_like(scores, dtype=np.float64)
    for _, h, i, j in np.ndindex(scores.shape):
        score = float(scores[0, h, i, j])
        value = function(*arguments(kind, (score, 0, h, i, j), tensors=tensors))
        changed[0, h, i, j] = float(value) if kind == "score_mod" else (score if value else -math.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(changed - np.maximum(changed.max(-1, keepdims=True), -1e300))
    total = weights.sum(-1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), 0) @ v


def attends(kind: str, function, *, tensors: bool) -> None:
    """`sparse_attention` with every block kept gives the dense result, to the rounding of f16."""
    generator = np.random.default_rng(3)
    q, k, v = (generator.normal(size=(1, 2, SEQ, DIM)).astype(np.float16) for _ in range(3))
    made = {"score_mod": score_mod, "mask_mod": mask_mod}[kind](function)
    found = tilewright.sparse_attention(q, k, v, top_k=None, top_p=None, block_size=(64, 64), **{kind: made})
    expected = dense(q, k, v, kind, function, tensors=tensors)
    error = np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected)
    assert error < 2e-3, (error, made.source)


@needs_numpy
@pytest.mark.parametrize("function", [f for f in SCORES if f.__name__ not in TOO_STEEP], ids=lambda f: f.__name__)
def test_attention_with_scores_of_plain_python(function):
    attends("score_mod", function, tensors=False)


@needs_numpy
@pytest.mark.parametrize("function", MASKS, ids=lambda f: f.__name__)
def test_attention_with_masks_of_plain_python(function):
    attends("mask_mod", function, tensors=False)


@needs_torch
@needs_numpy
@pytest.mark.parametrize("case", [c for c in torch_cases() if c[0] not in TOO_STEEP], ids=lambda case: case[0])
def test_attention_with_functions_of_torch(case):
    _, kind, function = case
    attends(kind, function, tensors=True)


@needs_numpy
def test_attention_with_both_and_a_selection():
    generator = np.random.default_rng(5)
    q, k, v = (generator.normal(size=(1, 2, 300, DIM)).astype(np.float16) for _ in range(3))
    window, bias = mask_mod(make_window(70)), score_mod(relative)
    out, mask = tilewright.sparse_attention(
        q, k, v, top_k=0.5, top_p=None, block_size=(64, 64), score_mod=bias, mask_mod=window, return_mask=True
    )
    again = tilewright.attention(q, k, v, mask, score_mod=bias)
    assert mask.mask_mod is window and np.array_equal(out, again)
    assert mask.full_kv_num_blocks.sum() > 0 and mask.kv_num_blocks.sum() > 0
    # Other values of the captures, the same text: another result.
    other = tilewright.sparse_attention(q, k, v, top_k=0.5, top_p=None, block_size=(64, 64), mask_mod=window.bind(size=5))
    assert not np.array_equal(out, other)


@needs_numpy
def test_attention_refuses_the_other_kind_and_plain_functions():
    q = np.zeros((1, 1, 64, DIM), dtype=np.float16)
    with pytest.raises(ValueError, match="a mask function, needed a score function"):
        tilewright.sparse_attention(q, q, q, score_mod=mask_mod(causal))
    with pytest.raises(TypeError, match="wrap it with `tilewright.mask_mod"):
        tilewright.sparse_attention(q, q, q, mask_mod=causal)


def test_equal_functions_share_a_number_in_every_process():
    import gc
    import subprocess
    import sys

    first, second, other = mask_mod(make_window(4)), mask_mod(make_window(4)), mask_mod(make_window(5))
    assert first.number == second.number != other.number
    number, source, captures = first.number, first.source, [("i32", 4)]
    code = f"import tilewright; print(tilewright._native.DeviceFunction('mask_mod', {source!r}, {captures!r}).number)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    # What an exported program has in it means the same function there, or none.
    assert int(run.stdout) == number
    del first, second
    gc.collect()
    q = np.zeros((1, 1, 64, DIM), dtype=np.float16)
    with pytest.raises(ValueError, match=f"device function number {number} does not exist"):
        tilewright._native.sparse_attention(q, q, q, 0.5, None, 128, 64, None, 0, number, False, False, False)
    assert mask_mod(make_window(4)).number == number


def test_copies_and_pickles():
    import copy
    import pickle

    made = score_mod(softcap).bind(CAP=3.0)
    assert copy.copy(made) is made and copy.deepcopy({"f": made})["f"] is made
    again = pickle.loads(pickle.dumps(made))
    assert again == made and again.captures == {"CAP": 3.0}


@needs_torch
def test_compiled_calls():
    torch.manual_seed(2)
    q, k, v = (torch.randn(1, 2, 200, DIM).to(torch.bfloat16) for _ in range(3))
    window, bias = mask_mod(make_window(30)), score_mod(relative)

    def call(q, k, v):
        return tilewright.sparse_attention(q, k, v, top_k=0.5, block_size=(64, 64), score_mod=bias, mask_mod=window)

    compiled = torch.compile(call, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, k, v), call(q, k, v))


@needs_torch
def test_flex_attention_block_masks_as_they_are():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    torch.manual_seed(0)
    ids = (torch.arange(300) // 110).to(torch.int32)
    q, k, v = (torch.randn(1, 2, 300, DIM).to(torch.bfloat16) for _ in range(3))
    documents = flex.and_masks(causal, lambda b, h, q, kv: ids[q] == ids[kv])
    mask = flex.create_block_mask(documents, B=None, H=None, Q_LEN=300, KV_LEN=300, BLOCK_SIZE=(128, 64), device="cpu")
    found = tilewright.attention(q, k, v, mask)
    at = torch.arange(300)
    keep = (at[:, None] >= at) & (ids[:, None] == ids)
    expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=keep)
    assert (found.double() - expected).norm() / expected.norm() < 5e-3


# On a GPU


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu_executor(monkeypatch):
    # Timing every schedule for every function would take minutes, and is tested elsewhere.
    monkeypatch.setenv("TILEWRIGHT_POLICY", "first-valid")
    torch.manual_seed(1)
    batch, heads, seq, dim = 2, 4, 500, 64
    tensors = [torch.randn(batch, heads, seq, dim).to(torch.bfloat16) for _ in range(3)]
    on_gpu = [tensor.cuda() for tensor in tensors]
    ids, bias = torch.arange(seq) // 130, torch.randn(heads, seq)
    combined = mask_mod(lambda b, h, q, kv: (ids[q] == ids[kv]) & (q - kv < WINDOW * 10))
    wide = ["softcap", "alibi", "relative_table", "gated", "casts", "remainders"]
    cases = [("score_mod", f) for f in SCORES if f.__name__ not in TOO_STEEP]
    cases += [("mask_mod", f) for f in MASKS]
    cases += [(kind, f) for name, kind, f in torch_cases() if name in wide]
    cases += [("mask_mod", combined), ("score_mod", lambda score, b, h, q, kv: score + bias[h, kv] - bias[h][q])]
    for kind, function in cases:
        made = {"score_mod": score_mod, "mask_mod": mask_mod}[kind](function)
        options = {"top_k": None, "top_p": None, kind: made}
        expected = tilewright.sparse_attention(*tensors, **options).double()
        found = tilewright.sparse_attention(*on_gpu, **options).cpu().double()
        error = ((found - expected).norm() / expected.norm()).item()
        print(f"{kind} {made.__name__}: {error:.1e}")
        assert error < 1e-2, (made.__name__, error, made.source)
    # Another window: the same kernels, other values.
    options = {"top_k": None, "top_p": None}
    for size in (3, 70):
        made = combined.bind(WINDOW=size)
        assert made.cuda == combined.cuda
        expected = tilewright.sparse_attention(*tensors, mask_mod=made, **options).double()
        found = tilewright.sparse_attention(*on_gpu, mask_mod=made, **options).cpu().double()
        assert (found - expected).norm() / expected.norm() < 1e-2
