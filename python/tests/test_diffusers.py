"""Sparse attention in the transformers of diffusers: small ones of each family, with random weights, on the CPU and on a GPU."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import (  # noqa: E402
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
    WanPipeline,
)
from diffusers.models.attention_dispatch import attention_backend  # noqa: E402
from diffusers.models.transformers import transformer_wan  # noqa: E402
from video_models import (  # noqa: E402
    GRID,
    TEXT,
    cogvideox,
    error,
    framepack,
    hunyuan,
    hunyuan_from_image,
    hunyuan_one_length,
    ltx,
    ltx_per_token,
    make,
    run,
    wan,
    wan_per_token,
    wan_vace,
)

import tilewright.diffusers  # noqa: E402
from tilewright.diffusers.layers import Layer  # noqa: E402

# Everything kept: what is left is the difference of two kernels in half precision.
ALL = {"top_k": 1.0, "top_p": None, "min_tokens": 64}
FEW = {"top_k": 0.1, "top_p": None, "min_tokens": 64}
TOKENS = 5 * 11 * 14

FAMILIES = [wan, cogvideox, hunyuan, ltx]
VARIANTS = [*FAMILIES, wan_per_token, hunyuan_one_length, hunyuan_from_image, ltx_per_token, wan_vace]


@pytest.mark.parametrize("family", VARIANTS)
def test_everything_kept_is_dense(family, device):
    model, inputs = make(family, device)
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, **ALL) as enabled:
        sparse = run(model, inputs)
        report = enabled.report()
    assert error(sparse, dense) < 4e-3
    assert report.sparsity == 0.0 and report.sparse_calls == len(report.layers) > 0


@pytest.mark.parametrize("family", VARIANTS)
def test_few_blocks_change_the_output_and_are_counted(family, device):
    model, inputs = make(family, device)
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, **FEW) as enabled:
        sparse = run(model, inputs)
        report = enabled.report()
    assert torch.isfinite(sparse).all()
    assert error(sparse, dense) > 1e-3
    assert 0.3 < report.sparsity < 0.95 and all(0.3 < share < 0.95 for share in report.layers.values())
    assert "% of the blocks left out" in str(report)


@pytest.mark.parametrize("tail", ["block", "row"])
@pytest.mark.parametrize("family", VARIANTS)
def test_a_tail_stands_for_the_blocks_left_out(family, tail, device):
    """Where all scores are alike, means say it all: of queries that are 0, text's too."""
    model, inputs = make(family, device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".to_q." in name or ".add_q_proj." in name or name.endswith("norm_q.bias"):
                parameter.zero_()
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, **FEW, grid=None, tail=None) as enabled:
        assert error(run(model, inputs), dense) > 4e-3
        without = enabled.report()
    with tilewright.diffusers.enable(model, **FEW, grid=None, tail=tail) as enabled:
        assert error(run(model, inputs), dense) < 8e-4
        assert enabled.report() == without
    with tilewright.diffusers.enable(model, **ALL, tail=None):
        everything = run(model, inputs)
    with tilewright.diffusers.enable(model, **ALL, tail=tail):
        assert torch.equal(run(model, inputs), everything)


@pytest.mark.parametrize("tail", [None, "block", "row"])
@pytest.mark.parametrize("family", [wan, hunyuan])
def test_scores_go_by_the_tail_unless_they_are_given(family, tail, device):
    """In the attention of video alone, and in the one with text, which selects by itself."""
    model, inputs = make(family, device)
    outs = {}
    for scores in (None, "means", "keys"):
        with tilewright.diffusers.enable(model, **FEW, tail=tail, scores=scores):
            outs[scores] = run(model, inputs)
    assert torch.equal(outs[None], outs["means" if tail is None else "keys"])
    assert not torch.equal(outs["means"], outs["keys"])


@pytest.mark.parametrize("family", [cogvideox, hunyuan])
def test_text_is_always_seen(family, device):
    """With as good as no video block kept, another text still changes every token."""
    model, inputs = make(family, device)
    with tilewright.diffusers.enable(model, top_k=1e-6, top_p=None, min_tokens=64):
        one = run(model, inputs)
        other = run(model, inputs, encoder_hidden_states=inputs["encoder_hidden_states"].flip(-1))
    assert (one != other).flatten(2).any(dim=1).float().mean() > 0.99


def test_padding_of_the_text_is_not_seen(device):
    model, inputs = make(hunyuan, device)
    padded = inputs["encoder_hidden_states"].clone()
    padded[:, 17:] = 3.0
    with tilewright.diffusers.enable(model, **FEW):
        assert torch.equal(run(model, inputs), run(model, inputs, encoder_hidden_states=padded))


@pytest.mark.parametrize("family", FAMILIES)
def test_disable_restores_exactly(family, device):
    model, inputs = make(family, device)
    before, dense = dict(model.attn_processors), run(model, inputs)
    tilewright.diffusers.enable(model, **FEW, grid="auto")
    run(model, inputs)
    tilewright.diffusers.disable(model)
    after = model.attn_processors
    assert before.keys() == after.keys() and all(after[name] is processor for name, processor in before.items())
    assert torch.equal(run(model, inputs), dense)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    tilewright.diffusers.disable(model)  # nothing is enabled: nothing happens


def test_a_processor_set_meanwhile_stays(device):
    model, _ = make(wan, device)
    tilewright.diffusers.enable(model, **FEW)
    own = transformer_wan.WanAttnProcessor()
    model.blocks[0].attn1.set_processor(own)
    tilewright.diffusers.disable(model)
    assert model.blocks[0].attn1.processor is own
    assert type(model.blocks[1].attn1.processor) is type(own)


def test_enabling_again_replaces_the_settings(device):
    model, inputs = make(wan, device)
    dense = run(model, inputs)
    tilewright.diffusers.enable(model, **FEW)
    run(model, inputs)
    tilewright.diffusers.enable(model, **ALL)
    assert error(run(model, inputs), dense) < 4e-3
    assert tilewright.diffusers.report(model).sparse_calls == 3
    tilewright.diffusers.disable(model)
    assert torch.equal(run(model, inputs), dense)


@pytest.mark.parametrize("family", [wan, cogvideox])  # diffusers does not fuse those of the others
def test_fused_projections(family, device):
    model, inputs = make(family, device)
    model.fuse_qkv_projections()
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, **ALL):
        assert error(run(model, inputs), dense) < 4e-3


def test_the_dense_backend_can_be_chosen_while_enabled(device):
    model, inputs = make(wan, device)
    # diffusers makes the backend that of the process too, which is left at the end of this context.
    with attention_backend(), tilewright.diffusers.enable(model, **FEW, layers=[0]):
        model.set_attention_backend("_native_math")
        sparse, dense = model.blocks[0].attn1.processor, model.blocks[1].attn1.processor
        assert sparse.dense._attention_backend == dense._attention_backend is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_layers(family, device):
    model, inputs = make(family, device)
    count = len(model.attn_processors)
    with tilewright.diffusers.enable(model, **FEW, layers=[0, -1]) as enabled:
        run(model, inputs)
        names = list(enabled.report().layers)
        ours = [p for p in model.attn_processors.values() if isinstance(p, Layer)]
    assert len(names) == len(ours) == 2 < count + 1
    first, last = {
        wan: ("blocks.0.attn1", "blocks.2.attn1"),
        cogvideox: ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
        hunyuan: ("transformer_blocks.0.attn", "single_transformer_blocks.1.attn"),
        ltx: ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1"),
    }[family]
    assert names == [first, last]


@pytest.mark.parametrize("family", FAMILIES)
def test_first_steps_stay_dense(family, device):
    model, inputs = make(family, device)
    at = lambda timestep: {"timestep": torch.full((2,), timestep, device=device)}  # noqa: E731
    dense = {t: run(model, inputs, **at(t)) for t in (999, 800, 600)}
    with tilewright.diffusers.enable(model, **FEW, skip_first_steps=2) as enabled:
        for _ in range(2):  # the second run begins anew
            for t, same in ((999, True), (999, True), (800, True), (600, False)):  # 999 twice: the passes of guidance
                assert torch.equal(run(model, inputs, **at(t)), dense[t]) == same
        layers = len(enabled.report().layers)
        assert enabled.report().sparse_calls == 2 * layers
        assert enabled.report().dense_calls == {"in skipped steps": 6 * layers}


def test_short_sequences_and_cross_attention_stay_dense(device):
    model, inputs = make(wan, device)
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, top_k=0.1, top_p=None, min_tokens=TOKENS + 1) as enabled:
        assert torch.equal(run(model, inputs), dense)
        report = enabled.report()
    assert report.sparsity is None and report.dense_calls == {"short": 3} and "no sparse call" in str(report)
    with tilewright.diffusers.enable(model, **FEW):
        crossing = [block.attn2.processor for block in model.blocks]
        assert not any(isinstance(processor, Layer) for processor in crossing)


@pytest.mark.parametrize("family", VARIANTS)
def test_regrouping_alone_changes_nothing(family, device):
    """Dense attention does not depend on the order of its tokens: in float64 only rounding is left."""
    model, inputs = make(family, device, torch.float64)
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, min_tokens=64, layers=[], grid="auto"):
        # Tables in float32 keep the others from better.
        assert error(run(model, inputs), dense) < (1e-12 if family in (wan, wan_per_token) else 1e-6)
    assert torch.equal(run(model, inputs), dense)


@pytest.mark.parametrize("family", VARIANTS)
def test_regrouped_and_everything_kept_is_dense(family, device):
    model, inputs = make(family, device)
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, **ALL, grid=GRID, tile=(4, 4, 4)):
        assert error(run(model, inputs), dense) < 4e-3


@pytest.mark.parametrize("family", VARIANTS)
def test_regrouping_selects_other_blocks(family, device):
    model, inputs = make(family, device)
    with tilewright.diffusers.enable(model, **FEW, grid=None):
        raster = run(model, inputs)
    with tilewright.diffusers.enable(model, **FEW, grid="auto"):
        cubes = run(model, inputs)
    assert torch.isfinite(cubes).all() and error(cubes, raster) > 1e-4


def test_regrouping_follows_the_size_of_each_call(device):
    model, inputs = make(wan, device, torch.float64)
    smaller = inputs["hidden_states"][:, :, :4, :16].contiguous()
    dense = run(model, inputs), run(model, inputs, hidden_states=smaller)
    with tilewright.diffusers.enable(model, min_tokens=64, layers=[], grid="auto"):
        for _ in range(2):
            assert error(run(model, inputs), dense[0]) < 1e-12
            assert error(run(model, inputs, hidden_states=smaller), dense[1]) < 1e-12


def test_arguments_by_position(device):
    model, inputs = make(wan, device)
    dense = run(model, inputs)
    args = inputs["hidden_states"], inputs["timestep"], inputs["encoder_hidden_states"]
    with torch.no_grad(), tilewright.diffusers.enable(model, **ALL, grid="auto", skip_first_steps=1):
        assert error(model(*args).sample.double(), dense) < 4e-3


def test_pipelines(device):
    """All transformers of a pipeline, with one count of steps between them: Wan 2.2 goes from one to the other in the middle of a run."""
    first, inputs = make(wan, device)
    second, _ = make(wan, device)
    pipe = SimpleNamespace(components={"transformer": first, "transformer_2": second, "text_encoder": torch.nn.Linear(2, 2), "vae": None})
    at = lambda timestep: {"timestep": torch.full((2,), timestep, device=device)}  # noqa: E731
    dense = run(second, inputs, **at(500))
    with tilewright.diffusers.enable(pipe, **FEW, skip_first_steps=1) as enabled:
        run(first, inputs, **at(900))
        assert not torch.equal(run(second, inputs, **at(500)), dense)
        report = enabled.report()
    assert report.dense_calls == {"in skipped steps": 3} and report.sparse_calls == 3
    assert all(name.startswith("transformer_2.blocks.") for name in report.layers)
    assert torch.equal(run(second, inputs, **at(500)), dense)


def test_a_pipeline_of_diffusers(device):
    """Wan's own loop, with guidance: two passes a step, and the first of three steps dense."""
    model, _ = make(wan, device)
    pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(), transformer=model)
    pipe.set_progress_bar_config(disable=True)
    t, h, w = GRID
    texts = torch.randn(2, 1, TEXT, 32, device=device, dtype=torch.float16)

    def sample():
        return pipe(
            prompt_embeds=texts[0],
            negative_prompt_embeds=texts[1],
            height=16 * h,
            width=16 * w,
            num_frames=4 * (t - 1) + 1,
            num_inference_steps=3,
            output_type="latent",
            generator=torch.Generator("cpu").manual_seed(5),
        ).frames.double()

    dense = sample()
    with tilewright.diffusers.enable(pipe, **FEW, grid="auto", skip_first_steps=1) as enabled:
        for run_number in (1, 2):
            assert torch.isfinite(sample()).all()
            report = enabled.report()
            assert report.sparse_calls == run_number * 2 * 2 * 3
            assert report.dense_calls == {"in skipped steps": run_number * 2 * 3}
    with tilewright.diffusers.enable(pipe, **ALL, grid="auto"):
        assert error(sample(), dense) < 4e-3
    assert torch.equal(sample(), dense)


def test_inference_mode_then_not(device):
    model, inputs = make(wan, device)
    with tilewright.diffusers.enable(model, **FEW, grid="auto") as enabled:
        with torch.inference_mode():
            model(**inputs)
        run(model, inputs)
        assert enabled.report().sparse_calls == 6


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": [3]}, "layers has \\[3\\], the model has 3 layers, 0 to 2"),
        ({"layers": [-4]}, "layers has \\[-4\\]"),
        ({"skip_first_steps": -1}, "skip_first_steps is -1"),
        ({"min_tokens": 1.5}, "min_tokens is 1.5"),
        ({"grid": "cubes"}, "grid is 'cubes', needed \"auto\""),
    ],
)
def test_options_that_do_not_fit(options, message):
    model, _ = make(wan, "cpu")
    before = dict(model.attn_processors)
    with pytest.raises(ValueError, match=message):
        tilewright.diffusers.enable(model, **options)
    assert model.attn_processors == before


def test_modules_called_by_themselves_keep_raster_order(device):
    model, inputs = make(wan, device)
    video = inputs["hidden_states"]
    with torch.no_grad():
        expected = [*model.rope(video), model.patch_embedding(video)]
        with tilewright.diffusers.enable(model, **FEW, grid="auto"):
            run(model, inputs)
            found = [*model.rope(video), model.patch_embedding(video)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_another_grid_than_the_input_has():
    model, inputs = make(wan, "cpu")
    with tilewright.diffusers.enable(model, **FEW, grid=(5, 14, 11)):
        with pytest.raises(ValueError, match=r"grid is \(5, 14, 11\), the model was called with \(5, 11, 14\) tokens"):
            run(model, inputs)


def test_a_grid_is_insisted_on_where_none_is_known():
    model, _ = make(framepack, "cpu")
    with pytest.raises(ValueError, match="where HunyuanVideoFramepackTransformer3DModel has its tokens in order is not known: leave grid out"):
        tilewright.diffusers.enable(model, **ALL, grid=GRID)
    with tilewright.diffusers.enable(model, **ALL) as enabled:
        assert "tokens in raster order (where HunyuanVideoFramepackTransformer3DModel has" in str(enabled.report())


def test_cubes_and_the_block_tail_go_together(device):
    """Unless told otherwise."""
    model, inputs = make(wan, device)
    outs = {}
    for grid in ("auto", None):
        for tail in ("auto", "block", None):
            with tilewright.diffusers.enable(model, **FEW, grid=grid, tail=tail) as enabled:
                outs[grid, tail] = run(model, inputs)
                assert enabled.report().order == ("tokens in cubes" if grid else "tokens in raster order")
    assert torch.equal(outs["auto", "auto"], outs["auto", "block"])
    assert torch.equal(outs[None, "auto"], outs[None, None])
    assert not torch.equal(outs["auto", "auto"], outs["auto", None])
    assert not torch.equal(outs[None, "block"], outs[None, None])


def test_ltx_called_with_coordinates_keeps_raster_order_without_a_grid():
    model, inputs = make(ltx, "cpu")
    coordinates = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in GRID), indexing="ij")).flatten(1).expand(2, 3, -1)
    inputs = {**inputs, "num_frames": None, "height": None, "width": None, "video_coords": coordinates}
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, **ALL, grid=GRID):
        assert error(run(model, inputs), dense) < 4e-3
    outs = []
    for grid in ("auto", None):
        with tilewright.diffusers.enable(model, **FEW, grid=grid, tail=None):
            outs.append(run(model, inputs))
    assert torch.equal(*outs)


def test_models_without_such_attention():
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = UNet2DModel(sample_size=8, block_out_channels=(32, 64), **blocks)
    with pytest.raises(ValueError, match="UNet2DModel has no attention that can be made sparse: its processors are AttnProcessor"):
        tilewright.diffusers.enable(unet)
    with pytest.raises(TypeError, match="got str, needed a transformer"):
        tilewright.diffusers.enable("transformer")
    with pytest.raises(ValueError, match="has no transformer among its components"):
        tilewright.diffusers.enable(SimpleNamespace(components={"unet": unet}))
    with pytest.raises(ValueError, match="not enabled"):
        tilewright.diffusers.report(unet)
