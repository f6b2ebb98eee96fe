"""Every family that `tilewright.diffusers` knows, and one it does not: what docs/diffusers.md has a table of."""

import pathlib
import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import video_models as models  # noqa: E402
from video_models import SMALL, error, make, run  # noqa: E402

import tilewright.diffusers  # noqa: E402

ALL = {"top_k": 1.0, "top_p": None, "min_tokens": 64}
FEW = {"top_k": 0.1, "top_p": None, "min_tokens": 64}
DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "diffusers.md"

# Whether the tokens lie in cubes.
FAMILIES = {
    models.wan: True,
    models.wan_from_image: True,
    models.wan_per_token: True,
    models.wan_vace: True,
    models.wan_animate: False,
    models.chronoedit: True,
    models.skyreels: True,
    models.cogvideox: True,
    models.cogvideox_in_place: True,
    models.consisid: False,
    models.hunyuan: True,
    models.hunyuan_from_image: True,
    models.framepack: False,
    models.ltx: True,
    models.ltx_per_token: True,
}


def processors_of(model):
    return {name: module.processor for name, module in model.named_modules() if hasattr(module, "processor")}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family(family, device):
    """Everything kept is dense to rounding, few blocks change the output, the report says what was done, and `disable` ends it."""
    model, inputs = make(family, device, grid=SMALL)
    before, dense = processors_of(model), run(model, inputs)
    with tilewright.diffusers.enable(model, **ALL) as enabled:
        assert error(run(model, inputs), dense) < 4e-3
        report = enabled.report()
        assert report.sparsity == 0 and report.sparse_calls == len(report.layers) > 0 and not report.dense_calls
        assert report.order.startswith("tokens in cubes" if FAMILIES[family] else "tokens in raster order (")
    outs = {}
    for grid in ("auto", None):
        with tilewright.diffusers.enable(model, **FEW, grid=grid) as enabled:
            outs[grid] = run(model, inputs)
            assert torch.isfinite(outs[grid]).all() and 0.2 < enabled.report().sparsity < 0.95
    assert 1e-4 < error(outs[None], dense) < 1
    assert torch.equal(outs["auto"], outs[None]) != FAMILIES[family]
    assert processors_of(model) == before and torch.equal(run(model, inputs), dense)


@pytest.mark.parametrize("family", [family for family, in_cubes in FAMILIES.items() if in_cubes])
def test_cubes_alone_change_nothing(family):
    """Dense attention does not depend on the order of its tokens: in float64 only rounding is left, and that of tables in float32."""
    model, inputs = make(family, "cpu", torch.float64, grid=SMALL)
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, min_tokens=64, layers=[]):
        assert error(run(model, inputs), dense) < 1e-6


def test_a_timestep_for_each_frame_keeps_raster_order():
    model, inputs = make(models.skyreels_per_frame, "cpu", grid=SMALL)
    dense = run(model, inputs)
    outs = []
    for grid in ("auto", None):
        with tilewright.diffusers.enable(model, **ALL, tail=None, grid=grid):
            outs.append(run(model, inputs))
    assert torch.equal(*outs) and error(outs[0], dense) < 4e-3


def test_a_control_of_another_size_keeps_raster_order():
    model, inputs = make(models.wan_vace, "cpu", grid=SMALL)
    control = inputs["control_hidden_states"][:, :, :2]
    inputs = {**inputs, "control_hidden_states": control}
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, **ALL):
        assert error(run(model, inputs), dense) < 4e-3


def test_the_document_has_these_models():
    text = DOCUMENT.read_text()
    table = text[text.index("| family |") :].partition("\n\n")[0]
    listed = dict(re.findall(r"`(\w+Model)` \| .* \| (yes|no)\b", table))
    built = {type(make(family, "cpu", grid=SMALL)[0]).__name__: "yes" if cubes else "no" for family, cubes in FAMILIES.items()}
    assert listed == built
