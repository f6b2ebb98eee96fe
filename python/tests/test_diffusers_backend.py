"""Tilewright as an attention backend of diffusers, by every way that diffusers has to choose one."""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.models.attention_dispatch import (  # noqa: E402
    AttentionBackendName,
    _AttentionBackendRegistry,
    attention_backend,
    dispatch_attention_fn,
)
from video_models import SMALL, error, make, run, wan  # noqa: E402

import tilewright  # noqa: E402
import tilewright.diffusers  # noqa: E402
from tilewright.diffusers import backend  # noqa: E402

LONG = (4, 32, 34)  # 4,352 tokens, more than the 4,096 from which attention is sparse


@pytest.fixture(autouse=True)
def native():
    """diffusers makes the backend of a model that of the process too."""
    with attention_backend("native"):
        yield


def tensors(tokens=4352, dtype=torch.float16):
    torch.manual_seed(3)
    return [torch.randn(1, tokens, 2, 64).to(dtype) for _ in range(3)]


def test_it_is_one_of_diffusers_backends():
    member = AttentionBackendName("tilewright")
    assert member is backend.BACKEND is AttentionBackendName.__members__["TILEWRIGHT"]
    assert member.value == "tilewright" and member in list(AttentionBackendName)
    assert member in _AttentionBackendRegistry.list_backends()


def test_a_long_self_attention_is_sparse_by_the_defaults():
    q, k, v = tensors()
    with attention_backend("tilewright"):
        out = dispatch_attention_fn(q, k, v)
    expected = tilewright.sparse_attention(q, k, v, layout="BSHD")
    assert torch.equal(out, expected)
    assert torch.equal(dispatch_attention_fn(q, k, v, scale=0.2, backend="tilewright"), tilewright.sparse_attention(q, k, v, scale=0.2, layout="BSHD"))


MASK = torch.ones(1, 1, 1, 4352, dtype=torch.bool)


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: ((q[:, :4095], k[:, :4095], v[:, :4095]), {}),
        lambda q, k, v: ((q, k[:, :4096], v[:, :4096]), {}),
        lambda q, k, v: ((q, k, v), {"attn_mask": MASK}),
        lambda q, k, v: ((q.float(), k.float(), v.float()), {}),
    ],
    ids=["short", "cross-attention", "a mask", "float32"],
)
def test_the_rest_stays_dense(change):
    (q, k, v), options = change(*tensors())
    expected = dispatch_attention_fn(q, k, v, **options)
    assert torch.equal(dispatch_attention_fn(q, k, v, backend="tilewright", **options), expected)


def test_set_attention_backend():
    model, inputs = make(wan, "cpu", grid=LONG, batch=1, num_layers=1)
    dense = run(model, inputs)
    model.set_attention_backend("tilewright")
    sparse = run(model, inputs)
    assert 1e-3 < error(sparse, dense) < 1
    model.reset_attention_backend()
    with attention_backend("native"):
        assert torch.equal(run(model, inputs), dense)
    with attention_backend("tilewright"):
        assert torch.equal(run(model, inputs), sparse)
    # A rule of one's own goes before it, and what that leaves dense is native.
    model.set_attention_backend("tilewright")
    with tilewright.diffusers.enable(model, min_tokens=5000) as enabled:
        assert torch.equal(run(model, inputs), dense)
        assert enabled.report().dense_calls == {"short": 1}
    assert torch.equal(run(model, inputs), sparse)


def test_the_backend_of_the_environment():
    program = (
        "import tilewright.diffusers\n"
        "from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry\n"
        "print(registry._active_backend.value)\n"
    )
    environment = {**os.environ, "DIFFUSERS_ATTN_BACKEND": "tilewright"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["tilewright"], done.stderr


def test_all_calls_dense_is_said_once(caplog):
    model, inputs = make(wan, "cpu", grid=SMALL)
    with tilewright.diffusers.enable(model), caplog.at_level("WARNING", logger="tilewright"):
        run(model, inputs)
        run(model, inputs)
    (record,) = [record for record in caplog.records if record.name.startswith("tilewright")]
    assert record.getMessage() == (
        "sparse attention is enabled in WanTransformer3DModel, and all of its 3 attentions stayed dense: short"
    )
    caplog.clear()
    with tilewright.diffusers.enable(model, min_tokens=64, skip_first_steps=1):
        run(model, inputs)
        run(model, inputs, timestep=inputs["timestep"] - 100)
    assert not [record for record in caplog.records if record.name.startswith("tilewright")]
