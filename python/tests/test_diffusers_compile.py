"""One compiled graph serves all blocks of a model, in every family, whatever is enabled and when."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from torch._dynamo.testing import CompileCounter  # noqa: E402
from video_models import (  # noqa: E402
    SMALL,
    cogvideox,
    error,
    hunyuan_one_length,
    ltx,
    make,
    run,
    wan,
    wan_vace,
)

import tilewright.diffusers  # noqa: E402

FEW = {"top_k": 0.1, "top_p": None, "min_tokens": 64}
MANY = {"num_layers": 12}
FAMILIES = {wan: MANY, wan_vace: MANY, cogvideox: MANY, ltx: MANY, hunyuan_one_length: {"num_single_layers": 12}}
OPTIONS = {
    "as it comes": {},
    "raster": {"grid": None},
    "row": {"tail": "row"},
    "no tail": {"tail": None},
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compile_blocks(model):
    """Compiles the blocks of a model, and gives the counter of its graphs."""
    counter = CompileCounter()
    if model._repeated_blocks:
        model.compile_repeated_blocks(fullgraph=True, backend=counter)
    else:  # as of CogVideoX, whose class does not say what they are
        for block in model.transformer_blocks:
            block.compile(fullgraph=True, backend=counter)
    return counter


@pytest.mark.parametrize(
    "family, options",
    [*((wan, options) for options in OPTIONS.values()), *((family, {}) for family in FAMILIES if family is not wan)],
    ids=[*(f"wan, {name}" for name in OPTIONS), *(family.__name__ for family in FAMILIES if family is not wan)],
)
def test_blocks_compile_once(family, options):
    """As often as those of the dense model, once for each kind of block, whether they are compiled before `enable` or after it; and once
    more where tokens are regrouped, or lie in memory in another way than in the dense model."""
    model, inputs = make(family, "cpu", grid=SMALL, **FAMILIES[family])
    enabled = tilewright.diffusers.enable(model, **FEW, **options)
    expected = run(model, inputs)
    enabled.disable()
    counter = compile_blocks(model)
    run(model, inputs)
    dense = counter.frame_count
    assert dense <= 6
    for again in (False, True):
        if again:
            torch._dynamo.reset()
        counter.clear()
        enabled = tilewright.diffusers.enable(model, **FEW, **options)
        for _ in range(3):
            assert torch.equal(run(model, inputs), expected)
        assert counter.frame_count <= (1 if family is wan and again else dense + 1)
        report = enabled.report()
        assert report.sparse_calls == 3 * len(report.layers) > 0 and not report.dense_calls


def test_a_batch_of_one_compiles_once():
    """Guidance's two passes come one by one. The second graph is the view that the first block is given."""
    model, inputs = make(wan, "cpu", grid=SMALL, batch=1, num_layers=12)
    counter = compile_blocks(model)
    with tilewright.diffusers.enable(model, **FEW):
        for _ in range(2):
            run(model, inputs)
    assert counter.frame_count <= 2


def test_dense_steps_are_a_second_graph():
    model, inputs = make(wan, "cpu", grid=SMALL, num_layers=12)
    counter = compile_blocks(model)
    enabled = tilewright.diffusers.enable(model, **FEW, skip_first_steps=2)
    for _ in range(2):
        for timestep in (900, 800, 700, 600, 500):
            run(model, inputs, timestep=torch.tensor([timestep] * 2))
    assert counter.frame_count == 2
    report = enabled.report()
    assert report.sparse_calls == 2 * 3 * 12 and report.dense_calls == {"in skipped steps": 2 * 2 * 12}


# The lengths of HunyuanVideo's prompts are read from its mask, which no graph can.
@pytest.mark.parametrize("family", [wan, wan_vace, cogvideox, ltx])
def test_a_whole_model_is_compiled_once(family):
    """With the arguments' regrouping, where there is any, as a graph of its own."""
    model, inputs = make(family, "cpu", grid=SMALL)
    with tilewright.diffusers.enable(model, **FEW):
        expected = run(model, inputs)
    counter = CompileCounter()
    enabled = tilewright.diffusers.enable(model, **FEW)
    model.compile(fullgraph=True, backend=counter)
    for number in (1, 2, 3):
        assert torch.equal(run(model, inputs), expected)
        assert enabled.report().sparse_calls == number * len(enabled.report().layers)
        assert counter.frame_count == (2 if family in (cogvideox, ltx) else 1)


def test_gradients_of_compiled_blocks():
    model, inputs = make(wan, "cpu", torch.bfloat16, grid=SMALL, num_layers=2)
    tilewright.diffusers.enable(model, **FEW)

    def gradient():
        model.zero_grad()
        model(**inputs, return_dict=False)[0].float().square().sum().backward()
        return model.blocks[0].attn1.to_q.weight.grad.clone()

    expected = gradient()
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    assert error(gradient().double(), expected.double()) < 2e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_that_is_moved_after_it_was_enabled():
    model, inputs = make(wan, "cpu", torch.bfloat16, grid=SMALL, num_layers=3)
    enabled = tilewright.diffusers.enable(model, **FEW)
    run(model, inputs)
    model.to("cuda")
    inputs = {name: value.to("cuda") for name, value in inputs.items()}
    counter = compile_blocks(model)
    for number in (2, 3):
        run(model, inputs)
        assert enabled.report().sparse_calls == number * 3
    assert counter.frame_count == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("options", [{}, {"grid": None}], ids=["cubes", "raster"])
def test_cuda_graphs(options):
    """Replayed, blocks are computed and counted as ever."""
    model, inputs = make(wan, "cuda", torch.bfloat16, grid=SMALL, num_layers=3)
    enabled = tilewright.diffusers.enable(model, **FEW, **options)
    expected = run(model, inputs)
    calls = enabled.report().sparse_calls
    model.compile_repeated_blocks(fullgraph=True, mode="reduce-overhead")
    for number in range(1, 6):
        torch.compiler.cudagraph_mark_step_begin()
        assert error(run(model, inputs), expected) < 2e-2
        assert enabled.report().sparse_calls == (1 + number) * calls
    from torch._dynamo.utils import counters

    assert counters["inductor"]["cudagraph_skips"] == 0
