"""Functions that are formulas on the GPU: value and derivative against PyTorch in f64, at the ends, at 0 and where e^x is 0 or ∞."""

from __future__ import annotations

import math

import pytest

from tilewright import score_mod

torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is what the formulas are compared with")
F = torch.nn.functional

SIZES = [0.0, 1e-20, 1e-5, 0.25, 0.3, 1.0, 5.0, 16.0, 16.7, 20.0, 40.0, 87.0, 88.8, 100.0, 104.0, 1e4, 1e13, 1e20, 3e38, math.inf]
SCORES = [sign * size for size in SIZES for sign in (1, -1)]

FORMULAS = {
    "sigmoid": lambda s, b, h, q, kv: torch.sigmoid(s),
    "expit": lambda s, b, h, q, kv: torch.special.expit(s),
    "softplus": lambda s, b, h, q, kv: F.softplus(s),
    "logsigmoid": lambda s, b, h, q, kv: F.logsigmoid(s),
    "silu": lambda s, b, h, q, kv: F.silu(s),
    "gelu": lambda s, b, h, q, kv: F.gelu(s, approximate="tanh"),
    "relu": lambda s, b, h, q, kv: F.relu(s),
    "tanh": lambda s, b, h, q, kv: torch.tanh(s),
    "expm1": lambda s, b, h, q, kv: torch.expm1(s),
    "log1p": lambda s, b, h, q, kv: torch.log1p(s),
    "exp": lambda s, b, h, q, kv: torch.exp(s),
    "abs": lambda s, b, h, q, kv: torch.abs(s),
    "square": lambda s, b, h, q, kv: torch.square(s),
    "log10": lambda s, b, h, q, kv: torch.log10(s),
    "tan": lambda s, b, h, q, kv: torch.tan(s),
    "sign": lambda s, b, h, q, kv: torch.sign(s),
    "trunc": lambda s, b, h, q, kv: torch.trunc(s),
    "clamp": lambda s, b, h, q, kv: torch.clamp(s, -1, 5),
    "scaled sigmoid": lambda s, b, h, q, kv: torch.sigmoid(s * 10) * 3,
    "gated": lambda s, b, h, q, kv: torch.where(s > 0, F.softplus(s), torch.sigmoid(s)),
}
# Where the value is small beside what it is made of, it has the digits of that.
DIGITS = {"gelu": 1e-6, "tanh": 1e-6}


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_derivative(name):
    function = FORMULAS[name]
    made = score_mod(function)
    for score in SCORES:
        score = torch.tensor(score)
        exact = score.double().requires_grad_()
        value = function(exact, 0, 0, 0, 0)
        (slope,) = torch.autograd.grad(value, exact)
        for what, found, needed in [("value", made.run, value), ("derivative", made.gradient, slope)]:
            found, needed = found(score.item(), 0, 0, 0, 0), needed.float().item()
            same = found == needed or math.isnan(found) and math.isnan(needed)
            near = math.isclose(found, needed, rel_tol=2e-5, abs_tol=DIGITS.get(name, 1e-16))
            assert same or near, f"the {what} at {score.item()}: found {found}, PyTorch {needed}\n{made.source}"


def test_what_is_near_0_is_not_0():
    """Where a small value decides: its sign, its remainder."""
    for function in (
        lambda s, b, h, q, kv: (s + s) + torch.sign(F.softplus(s)),
        lambda s, b, h, q, kv: torch.remainder(-F.softplus(s), 2.5),
        lambda s, b, h, q, kv: ((s + s) if b in (0, 3) else F.softplus(s)) % -1.5,
        lambda s, b, h, q, kv: -torch.sign(F.softplus(s)) + torch.sign(torch.expm1(s * 1e-9)),
        lambda s, b, h, q, kv: torch.remainder(torch.sigmoid(s), -1.5) + torch.sign(torch.log1p(s * s * 1e-12)),
    ):
        made = score_mod(function)
        for score in (-103.0, -90.0, -50.0, -20.0, -17.0, -10.0, -1.0, 0.5, 30.0):
            for batch in (0, 1):
                needed = function(torch.tensor(score, dtype=torch.float64), batch, 0, 0, 0).item()
                found = made.run(score, batch, 0, 0, 0)
                assert math.isclose(found, needed, rel_tol=1e-5, abs_tol=1e-5), f"{score}: found {found}, PyTorch {needed}\n{made.source}"


def test_captures_of_the_names_in_formulas():
    """A formula's own names are none of the function's, nor what is bound to them."""
    inf, u = 3.0, 1.0
    made = score_mod(lambda s, b, h, q, kv: torch.where(torch.isinf(s), u, torch.log1p(abs(s)) + inf))
    bound = made.bind(inf=2.0, u=5.0)
    assert bound.run(math.inf, 0, 0, 0, 0) == 5.0 and math.isclose(bound.run(1.0, 0, 0, 0, 0), math.log(2) + 2, rel_tol=1e-6)


def test_nan_stays_nan():
    for name, function in FORMULAS.items():
        value = score_mod(function).run(math.nan, 0, 0, 0, 0)
        # A clamp gives a number where one side is NaN; torch's sign of NaN is 0, as its comparisons are false.
        known = {"clamp": -1.0, "sign": 0.0, "gated": math.nan}.get(name, math.nan)
        assert value == known or math.isnan(value) and math.isnan(known), (name, value)


def test_gradients_of_an_attention_are_numbers(device):
    import tilewright

    torch.manual_seed(0)
    gate = score_mod(lambda score, b, h, q, kv: torch.sigmoid(score * 10) + F.softplus(score * 20) / 10)
    q, k = ((torch.randn(1, 1, 128, 64) * 2).bfloat16().requires_grad_() for _ in range(2))
    v = torch.randn(1, 1, 128, 64).bfloat16().requires_grad_()
    weight = torch.randn(1, 1, 128, 64)
    out = tilewright.sparse_attention(*(tensor.to(device) for tensor in (q, k, v)), top_k=1.0, score_mod=gate)
    (out.float().cpu() * weight).sum().backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (q, k, v)]
    scores = exact[0] @ exact[1].mT / 8
    assert (scores * 10 < -89).double().mean() > 0.01
    scores = torch.sigmoid(scores * 10) + F.softplus(scores * 20) / 10
    ((torch.softmax(scores, -1) @ exact[2]) * weight).sum().backward()
    for found, needed in zip((q, k, v), exact):
        error = (found.grad.double() - needed.grad).norm() / needed.grad.norm()
        assert error < 2e-2, error.item()
