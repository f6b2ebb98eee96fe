"""An enabled model is a model: exported, compiled, copied, pickled, saved, cast and moved like any other."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import diffusers  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from video_models import SMALL, cogvideox, error, framepack, hunyuan, hunyuan_from_image, ltx, make, run, wan  # noqa: E402

import tilewright.diffusers  # noqa: E402
from tilewright.diffusers.layers import Layer  # noqa: E402

FEW = {"top_k": 0.1, "top_p": None, "min_tokens": 64}
FAMILIES = [wan, cogvideox, hunyuan, ltx]
GRIDS = pytest.mark.parametrize("grid", [None, "auto"], ids=["raster", "regrouped"])


def enabled_model(family, device="cpu", **options):
    model, inputs = make(family, device, grid=SMALL)
    return model, inputs, tilewright.diffusers.enable(model, **{**FEW, **options})


def processors_of(model):
    return {name: type(module.processor) for name, module in model.named_modules() if hasattr(module, "processor")}


def hooks_of(model):
    return [hook for module in model.modules() for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())]


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = [copy.deepcopy, pickled, saved]


@GRIDS
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called"])
@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("family", [*FAMILIES, hunyuan_from_image])
def test_a_copy_is_enabled_and_on_its_own(family, duplicate, called, grid):
    model, inputs = make(family, "cpu", grid=SMALL)
    dense, before = run(model, inputs), processors_of(model)
    enabled = tilewright.diffusers.enable(model, **FEW, grid=grid)
    sparse = run(model, inputs) if called else None
    calls = enabled.report().sparse_calls
    twin = duplicate(model)
    found = run(twin, inputs)
    assert enabled.report().sparse_calls == calls
    layers = len(tilewright.diffusers.report(twin).layers)
    assert tilewright.diffusers.report(twin).sparse_calls == calls + layers
    # Disabled, the copy is the model from before, and the original is still sparse; and the other way round.
    tilewright.diffusers.disable(twin)
    assert processors_of(twin) == before and hooks_of(twin) == []
    assert torch.equal(run(twin, inputs), dense)
    again = run(model, inputs)
    assert torch.equal(again, found) and not torch.equal(again, dense)
    assert sparse is None or torch.equal(again, sparse)
    enabled.disable()
    assert processors_of(model) == before and hooks_of(model) == []
    with pytest.raises(ValueError, match="not enabled"):
        tilewright.diffusers.report(twin)


def test_a_copy_outlives_the_original_disabled():
    model, inputs, enabled = enabled_model(wan, grid="auto")
    sparse = run(model, inputs)
    twin = copy.deepcopy(model)
    enabled.disable()
    assert torch.equal(run(twin, inputs), sparse)
    # Enabled anew, a copy starts a report of its own.
    tilewright.diffusers.enable(twin, **FEW)
    assert tilewright.diffusers.report(twin).sparse_calls == 0


def test_a_copy_goes_on_where_its_original_is_in_a_run():
    model, inputs, _ = enabled_model(wan, skip_first_steps=2)
    run(model, inputs, timestep=torch.tensor([900, 900]))
    twin = copy.deepcopy(model)
    for t in (800, 700):
        run(twin, inputs, timestep=torch.tensor([t, t]))
    report = tilewright.diffusers.report(twin)
    assert report.sparse_calls == 3 and report.dense_calls == {"in skipped steps": 6}


def test_saved_weights_are_those_of_the_dense_model(tmp_path):
    model, inputs = make(wan, "cpu", grid=SMALL)
    dense = run(model, inputs)
    names = set(model.state_dict())
    with tilewright.diffusers.enable(model, **FEW, grid="auto"):
        run(model, inputs)
        assert set(model.state_dict()) == names
        model.save_pretrained(tmp_path)
    loaded = diffusers.WanTransformer3DModel.from_pretrained(tmp_path).to(torch.float16)
    assert processors_of(loaded) == processors_of(model) and hooks_of(loaded) == []
    assert torch.equal(run(loaded.eval(), inputs), dense)


def test_casting():
    model, inputs, enabled = enabled_model(wan, grid="auto")
    before = run(model, inputs)
    model.to(torch.bfloat16)
    cast = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    assert error(run(model, cast), before) < 0.05
    assert enabled.report().sparse_calls == 6


@GRIDS
@pytest.mark.parametrize("family", FAMILIES)
def test_the_meta_device(family, grid):
    """Shapes come out, nothing is counted, and nothing of it stays."""
    model, inputs, enabled = enabled_model(family, grid=grid, skip_first_steps=0 if family is hunyuan else 1)
    away = copy.deepcopy(model).to("meta")
    move = lambda value: value.to("meta") if isinstance(value, torch.Tensor) else value  # noqa: E731
    there = {name: tuple(map(move, value)) if isinstance(value, tuple) else move(value) for name, value in inputs.items()}
    out = away(**there, return_dict=False)[0]
    assert out.is_meta and out.shape == run(model, inputs).shape
    assert tilewright.diffusers.report(away).sparse_calls == 0 and not tilewright.diffusers.report(away).dense_calls
    tilewright.diffusers.disable(away)
    assert hooks_of(away) == []
    # The original is as it was.
    report = enabled.report()
    assert report.sparse_calls + sum(report.dense_calls.values()) == sum(
        isinstance(processor, Layer) for processor in model.attn_processors.values()
    )


@GRIDS
@pytest.mark.parametrize("family", FAMILIES)
def test_fake_tensors_leave_nothing_behind(family, grid):
    model, inputs, enabled = enabled_model(family, grid=grid)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        move = lambda value: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value  # noqa: E731
        fake = {name: tuple(map(move, value)) if isinstance(value, tuple) else move(value) for name, value in inputs.items()}
        shape = model(**fake, return_dict=False)[0].shape
    assert enabled.report().sparse_calls == 0 and enabled.report().sparsity is None
    out = run(model, inputs)
    assert type(out) is torch.Tensor and out.shape == shape
    assert enabled.report().sparse_calls == len(enabled.report().layers) > 0


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@GRIDS
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called"])
@pytest.mark.parametrize("family", [wan, cogvideox, ltx])
def test_export(family, called, grid, strict):
    model, inputs, enabled = enabled_model(family, grid=grid)
    inputs = {**inputs, "return_dict": False}
    before = run(model, {name: value for name, value in inputs.items() if name != "return_dict"}) if called else None
    calls = enabled.report().sparse_calls
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, strict=strict)
    assert "tilewright" in str(program.graph)
    assert enabled.report().sparse_calls == calls
    with torch.no_grad():
        out = model(**inputs)[0]
        assert type(out) is torch.Tensor
        assert before is None or torch.equal(out.double(), before)
        assert torch.equal(program.module()(**inputs)[0], out)
    assert enabled.report().sparse_calls == calls + len(enabled.report().layers)
    enabled.disable()
    assert hooks_of(model) == []


def test_export_of_padded_prompts_is_dense_and_says_so():
    """The lengths of the prompts are not in the graph: masked attention is, which is right for all of them."""
    model, inputs, enabled = enabled_model(hunyuan, grid=None)
    inputs = {**inputs, "return_dict": False}
    with torch.no_grad(), pytest.warns(UserWarning, match="lengths of the prompts cannot be read .* stays dense"):
        program = torch.export.export(model, (), inputs, strict=False)
    assert "tilewright" not in str(program.graph)
    enabled.disable()
    with torch.no_grad():
        assert torch.equal(program.module()(**inputs)[0], model(**inputs)[0])


def test_export_with_steps_to_skip_is_refused():
    model, inputs, enabled = enabled_model(wan, skip_first_steps=2)
    with pytest.raises(ValueError, match="skip_first_steps is 2, and an exported program does not know its step"):
        torch.export.export(model, (), {**inputs, "return_dict": False}, strict=False)
    run(model, inputs)
    assert enabled.report().dense_calls == {"in skipped steps": 3}


@pytest.mark.parametrize("family", [wan, framepack])
def test_compiled(family):
    """Each call of compiled code is counted, as that of the model itself."""
    model, inputs, enabled = enabled_model(family)
    expected = run(model, inputs)
    layers = enabled.report().sparse_calls
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for number in (2, 3):
        assert torch.equal(run(compiled, inputs), expected)
        assert enabled.report().sparse_calls == number * layers
    assert 0 < enabled.report().sparsity < 1


def test_one_model_in_two_places_of_a_pipeline():
    model, inputs = make(wan, "cpu", grid=SMALL)
    before = processors_of(model)
    pipe = SimpleNamespace(components={"transformer": model, "transformer_2": model})
    with tilewright.diffusers.enable(pipe, **FEW) as enabled:
        run(model, inputs)
        assert enabled.report().sparse_calls == 3
    assert processors_of(model) == before and hooks_of(model) == []
