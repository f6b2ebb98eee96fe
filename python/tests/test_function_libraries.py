"""Functions, dtypes and types of torch in Python functions: what is decided when the object is made, and what is refused by name."""

from __future__ import annotations

import pytest

from refusals import refused
from test_functions import check
from tilewright import mask_mod, score_mod

torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is what calls are compared with")
F = torch.nn.functional

activation = torch.nn.ELU()

UNKNOWN = [
    (lambda s, b, h, q, kv: F.elu(s), "`torch.nn.functional.elu` is not supported", "write `torch.where(x > 0, x, torch.expm1(x))`"),
    (lambda s, b, h, q, kv: F.leaky_relu(s), "`torch.nn.functional.leaky_relu`", "write `torch.where(x > 0, x, 0.01 * x)`"),
    (lambda s, b, h, q, kv: F.relu6(s), "`torch.nn.functional.relu6`", "write `torch.clamp(x, 0.0, 6.0)`"),
    (lambda s, b, h, q, kv: F.hardtanh(s), "`torch.nn.functional.hardtanh`", "write `torch.clamp(x, -1.0, 1.0)`"),
    (lambda s, b, h, q, kv: F.dropout(s), "`torch.nn.functional.dropout`", "no random numbers"),
    (lambda s, b, h, q, kv: F.mish(s), "`torch.nn.functional.mish`", "it may call abs"),
    (lambda s, b, h, q, kv: torch.einsum("->", s), "`torch.functional.einsum`", "it may call abs"),
    (lambda s, b, h, q, kv: activation(s), "`torch.nn.modules.module.Module", "it may call abs"),
    (lambda s, b, h, q, kv: s if torch.cuda.is_available() else -s, "`torch.cuda.is_available`", "call it outside of the function"),
    (F.elu, "`torch.nn.functional.elu` is not supported"),
]


@pytest.mark.parametrize("function, needed", [(function, needed) for function, *needed in UNKNOWN])
def test_functions_of_torch_are_not_looked_into(function, needed):
    error = refused("score_mod", function, *needed)
    assert error.filename in (__file__, None)


# What the messages above advise gives what torch gives.
ADVISED = [
    (lambda s, b, h, q, kv: torch.where(s > 0, s, torch.expm1(s)), F.elu),
    (lambda s, b, h, q, kv: torch.where(s > 0, s, 0.01 * s), F.leaky_relu),
    (lambda s, b, h, q, kv: torch.clamp(s, 0.0, 6.0), F.relu6),
    (lambda s, b, h, q, kv: torch.clamp(s, -1.0, 1.0), F.hardtanh),
]


@pytest.mark.parametrize("written, meant", ADVISED, ids=[meant.__name__ for _, meant in ADVISED])
def test_what_is_advised_instead(written, meant):
    made = score_mod(written)
    for score in (-3.0, -0.5, 0.0, 0.5, 7.0):
        assert made.run(score, 0, 0, 0, 0) == pytest.approx(float(meant(torch.tensor(score))), abs=1e-6)


DECIDED = [
    lambda s, b, h, q, kv: torch.where(q >= kv, s, torch.finfo(s.dtype).min),
    lambda s, b, h, q, kv: torch.where(q < torch.iinfo(q.dtype).max, s, 0.0),
    lambda s, b, h, q, kv: s if s.dtype == torch.float32 else s * 2,
    lambda s, b, h, q, kv: s if s.dtype is torch.float16 else s * 2,
    lambda s, b, h, q, kv: s if s.dtype in (torch.float16, torch.bfloat16) else s * 3,
    lambda s, b, h, q, kv: s if q.dtype not in (torch.int64, torch.int32) else s * 3,
    lambda s, b, h, q, kv: s if (q >= kv).dtype == torch.bool else s * 2,
    lambda s, b, h, q, kv: s if isinstance(q, torch.Tensor) and q.dtype == torch.int32 else s * 2,
    lambda s, b, h, q, kv: s if isinstance(s, (int, float)) else s * 2,
    lambda s, b, h, q, kv: s * q.to(s.dtype),
]


@pytest.mark.parametrize("function", DECIDED)
def test_dtypes_and_types_are_those_of_torch(function):
    assert not score_mod(function).captures
    check("score_mod", function, tensors=True)


def test_numbers_of_python_are_no_tensors():
    assert mask_mod(lambda b, h, q, kv: isinstance(int(q), int) and not isinstance(int(q), torch.Tensor)).run(0, 0, 0, 0)
    kinds = [int, float]
    made = score_mod(lambda s, b, h, q, kv: s if isinstance(float(s), tuple(kinds)) else -s)
    assert made.run(2.0, 0, 0, 0, 0) == 2.0
