"""What `tilewright.diffusers.enable` refuses, at once and in the words of the package, and which models it knows."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
from diffusers.models.attention_processor import AttnProcessor2_0  # noqa: E402
from diffusers.models.transformers import transformer_wan  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from video_models import SMALL, WAN, error, make, run, wan  # noqa: E402

import tilewright.diffusers  # noqa: E402
from tilewright.diffusers.layers import Layer  # noqa: E402

NAN = float("nan")
Q = torch.zeros(1, 1, 1, 64, dtype=torch.float16)


def refusal(call):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    return type(caught.value), str(caught.value)


def refused(model, **options):
    """The error of `enable`, which has left the model as it was."""
    before = dict(model.attn_processors)
    found = refusal(lambda: tilewright.diffusers.enable(model, **options))
    assert model.attn_processors == before and not model._forward_pre_hooks
    return found


@pytest.mark.parametrize(
    "option",
    [
        *({name: value} for name in ("top_k", "top_p") for value in (5, 2.0, 0, 0.0, -0.1, NAN, 1e400, "0.03", [0.03], 1j)),
        *({"block_size": pair} for pair in ((64, 32), (8, 8), (128,), (128, 64, 1), (NAN, 64), (64.0, "64"), (128.0, 64))),
        *({"block_size": value} for value in (64, 64.0, "auto", None)),
        *({"tail": value} for value in ("rows", True, 64, ("row", 32), ("row", 0), ("row", 64.0), ("row", 2**64), ("block", 64))),
        {"tail": ("row", 64), "block_size": (128, 128)},
        *({"scores": value} for value in ("mean", "Keys", "", True, 4, ["keys"])),
    ],
    ids=str,
)
def test_selections_are_refused_as_by_sparse_attention(option):
    model, _ = make(wan, "cpu", grid=SMALL, num_layers=1)
    assert refused(model, **option) == refusal(lambda: tilewright.sparse_attention(Q, Q, Q, return_mask=True, **option))


@pytest.mark.parametrize(
    "mode",
    [FakeTensorMode, torch.inference_mode, lambda: torch.device("meta"), lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["fake", "inference", "meta", "autocast"],
)
def test_options_are_checked_in_every_mode(mode):
    model, inputs = make(wan, "cpu", grid=SMALL, num_layers=1)
    with mode():
        assert refused(model, top_k=5)[1].startswith("top-k is 5, needed a share")
        tilewright.diffusers.enable(model, min_tokens=64, grid="auto")
    assert run(model, inputs).isfinite().all()


@pytest.mark.parametrize("grid", ["auto", (4, 8, 8)], ids=str)
@pytest.mark.parametrize(
    "tile, block_size",
    [
        ((8, 8, 8), (128, 64)),
        ((4, 4, 4), (128, 128)),
        ((64, 1), (64, 64)),
        ((0, 4, 16), (64, 64)),
        ((-4, -4, 4), (64, 64)),
        ((4.0, 4, 4), (64, 64)),
    ],
    ids=str,
)
def test_tiles_are_refused_as_by_token_grids(grid, tile, block_size):
    model, _ = make(wan, "cpu", grid=SMALL, num_layers=1)
    expected = refusal(lambda: tilewright.TokenGrid((4, 8, 8), tile, block_size=block_size))
    assert refused(model, grid=grid, tile=tile, block_size=block_size) == expected


@pytest.mark.parametrize("grid", [(5, 11), (5, 11, 14, 1), (5, 11, 0), (-5, 11, 14), (5.0, 11, 14), (NAN, 1, 1), ()], ids=str)
def test_grids_are_refused_as_by_token_grids(grid):
    model, _ = make(wan, "cpu", grid=SMALL, num_layers=1)
    assert refused(model, grid=grid) == refusal(lambda: tilewright.TokenGrid(grid))


@pytest.mark.parametrize(
    "option, error, message",
    [
        ({"grid": "cubes"}, ValueError, "grid is 'cubes', needed \"auto\", three sizes (t, h, w) or None"),
        ({"grid": 5}, TypeError, 'grid is 5, needed "auto", three sizes'),
        ({"grid": True}, TypeError, "grid is True, needed"),
        ({"grid": "auto", "tile": 64}, TypeError, "tile is 64, needed three sizes (t, h, w) or None"),
        ({"grid": "auto", "tile": "4x4x4"}, TypeError, "tile is '4x4x4', needed three sizes"),
        ({"grid": None, "tile": (4, 4, 4)}, ValueError, 'tile is (4, 4, 4), and there is no grid to cut into tiles: pass grid="auto" too'),
        ({"layers": 1}, TypeError, "layers is 1, needed the numbers of transformer blocks in a list"),
        ({"layers": "all"}, TypeError, "layers is 'all', needed"),
        ({"layers": [0.0]}, TypeError, "layers has 0.0, needed"),
        ({"layers": [NAN]}, TypeError, "layers has nan, needed"),
        ({"layers": ["blocks.0"]}, TypeError, "layers has 'blocks.0', needed"),
        ({"layers": [True]}, TypeError, "layers has True, needed"),
        ({"layers": [0, 2, -3]}, ValueError, "layers has [2, -3], the model has 2 layers, 0 to 1"),
        *(
            ({name: value}, ValueError, f"{name} is {value!r}, needed a whole number of at least 0")
            for name in ("skip_first_steps", "min_tokens")
            for value in (-1, 1.5, 2.0, NAN, "5", None, True, [1])
        ),
    ],
    ids=str,
)
def test_other_options(option, error, message):
    model, _ = make(wan, "cpu", grid=SMALL, num_layers=2)
    found = refused(model, **option)
    assert found[0] is error and message in found[1]


def test_a_head_dimension_that_no_kernel_has():
    model, _ = make(wan, "cpu", grid=SMALL, num_layers=1)
    odd = diffusers.WanTransformer3DModel(**{**WAN, "attention_head_dim": 12}, num_layers=1)
    q = torch.zeros(1, 1, 1, 12, dtype=torch.float16)
    assert refused(odd) == refusal(lambda: tilewright.sparse_attention(q, q, q))
    # All models of a pipeline are checked before the first is changed.
    pipe = SimpleNamespace(components={"transformer": model, "transformer_2": odd})
    before = dict(model.attn_processors)
    refusal(lambda: tilewright.diffusers.enable(pipe))
    assert model.attn_processors == before


def test_refused_options_leave_an_enabled_model_as_it_is():
    model, inputs = make(wan, "cpu", grid=SMALL, num_layers=1)
    tilewright.diffusers.enable(model, top_k=0.1, top_p=None, min_tokens=64)
    run(model, inputs)
    refusal(lambda: tilewright.diffusers.enable(model, top_k=5))
    run(model, inputs)
    assert tilewright.diffusers.report(model).sparse_calls == 2


def test_options_of_numpy_and_iterators():
    model, inputs = make(wan, "cpu", grid=SMALL, num_layers=2)
    options = {
        "top_k": np.float32(0.5),
        "top_p": np.float64(0.5),
        "block_size": [np.int64(64), np.int64(64)],
        "min_tokens": np.int64(64),
        "skip_first_steps": np.int32(0),
        "layers": iter([np.int64(-1)]),
        "grid": np.array(SMALL),
        "tile": [4, 4, 4],
    }
    with tilewright.diffusers.enable(model, **options) as enabled:
        run(model, inputs)
        assert list(enabled.report().layers) == ["blocks.1.attn1"]


# ---- models --------------------------------------------------------------------------------------------------------


def test_a_processor_derived_from_a_known_one():
    """What it adds around attention stays: attention alone is another."""

    class Own(transformer_wan.WanAttnProcessor):
        def __call__(self, *args, **kwargs):
            return 2 * super().__call__(*args, **kwargs)

    model, inputs = make(wan, "cpu", grid=SMALL, num_layers=1)
    model.blocks[0].attn1.set_processor(Own())
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, top_k=1.0, top_p=None, min_tokens=64) as enabled:
        assert error(run(model, inputs), dense) < 4e-3
        assert enabled.report().sparse_calls == 1
    assert type(model.blocks[0].attn1.processor) is Own


def test_processors_that_go_by_no_backend_are_named():
    model, _ = make(wan, "cpu", grid=SMALL, num_layers=1)
    for attention in (model.blocks[0].attn1, model.blocks[0].attn2):
        attention.set_processor(AttnProcessor2_0())
    _, message = refused(model)
    assert message.startswith(
        "WanTransformer3DModel has no attention that can be made sparse: its processors are AttnProcessor2_0, needed such as go by an "
        "attention backend of diffusers"
    )
