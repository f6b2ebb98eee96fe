"""Text and its padding, in every family and batch: with everything kept, sparse is dense, whatever the prompts' lengths."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import video_models as models  # noqa: E402
from video_models import SMALL, TEXT, error, make, run, text_mask  # noqa: E402

import tilewright.diffusers  # noqa: E402
from tilewright.diffusers.text import keep_text  # noqa: E402

ALL = {"top_k": 1.0, "top_p": None, "min_tokens": 64}
# Two kernels in half precision differ by 3e-4 here; one text token less makes 2e-2.
ROUNDING = 8e-4

# Lengths of the prompts of a batch: all tokens, a single one, some; alike and uneven.
LENGTHS = [(TEXT,), (9,), (1,), (9, 17), (TEXT, 1), (13, 13), (TEXT, 1, 13), (5, 5, 20)]
PADDED = [models.hunyuan, models.hunyuan_from_image, models.framepack, models.ltx]
UNPADDED = [
    models.wan,
    models.wan_from_image,
    models.wan_vace,
    models.cogvideox,
    models.cogvideox_in_place,
    models.consisid,
    models.cogview3,
]


def _with_text_that_matters(model, inputs):
    """With random weights one key more or less is lost in rounding: those of texts and images are scaled up."""
    for name, parameter in model.named_parameters():
        if name.endswith(("norm_added_k.weight", "add_v_proj.weight")):
            parameter.data.mul_(4)
    return model, inputs


def _agree(model, inputs, dense_calls=None):
    dense = run(model, inputs)
    with tilewright.diffusers.enable(model, **ALL, grid=None) as enabled:
        sparse = run(model, inputs)
        report = enabled.report()
    assert report.dense_calls == (dense_calls or {})
    assert error(sparse, dense) < ROUNDING
    for found, expected in zip(sparse, dense):  # each of the batch: one wrong video of three must not drown
        assert error(found, expected) < ROUNDING
    return dense, report


@pytest.mark.parametrize("video", [100, 31 * 64 + 5, 32 * 64 - 1, 32 * 64, 32 * 64 + 1, 2300])
@pytest.mark.parametrize("text", [0, 1, 70, 2100])
def test_blocks_of_text_are_not_dropped(video, text, device):
    q, k = torch.randn(2, 1, 2, video, 64, generator=torch.Generator().manual_seed(0)).half().to(device)
    for options in ({"block_size": (128, 64)}, {"block_size": (64, 128)}):
        mask = tilewright.block_mask(q, k, top_k=0.3, top_p=None, **options)
        joint = keep_text(mask, video + text, video + text, video, says_dropped=True)
        assert torch.equal(joint.dropped_map(), ~joint.to_dense()) and joint.dropped.dtype == torch.int32
        assert torch.equal(joint.dropped, joint.with_unlisted_dropped().dropped)  # no bits but those of blocks
        assert keep_text(mask, video + text, video + text, video).dropped is None


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("family", PADDED)
def test_padded_prompts(family, lengths, device):
    model, inputs = _with_text_that_matters(*make(family, device, batch=len(lengths), grid=SMALL, lengths=lengths))
    dense, report = _agree(model, inputs)
    assert report.sparse_calls == len(report.layers) > 0
    if family is not models.ltx and min(lengths) > 1:  # the models divide by the number of text tokens
        shorter = text_mask([length - 1 for length in lengths]).to(device)
        assert error(run(model, inputs, encoder_attention_mask=shorter), dense) > 10 * ROUNDING


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("family", UNPADDED)
def test_batches(family, batch, device):
    _, report = _agree(*make(family, device, batch=batch, grid=SMALL))
    assert report.sparse_calls == len(report.layers) > 0


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float16], ids=str)
@pytest.mark.parametrize("family", PADDED)
def test_masks_that_are_no_prefix(family, dtype, device):
    """Padding in front, holes, an empty prompt: the models count the ones, and so do we."""
    holes = torch.tensor([[0, 1] * 12, [0] * 20 + [1] * 4, [1, 1] + [0] * 20 + [1, 1]])
    model, inputs = _with_text_that_matters(*make(family, device, batch=3, grid=SMALL, lengths=(1, 1, 1)))
    if dtype != torch.bool or family is not models.ltx:  # LTX subtracts the mask from 1
        _agree(model, {**inputs, "encoder_attention_mask": holes.to(device, dtype)})


@pytest.mark.parametrize("family", [models.hunyuan, models.framepack])
def test_prompts_that_change_from_call_to_call(family, device):
    """One tensor with other contents, and another number of image tokens: lengths are those of the call."""
    model, inputs = _with_text_that_matters(*make(family, device, grid=SMALL, lengths=(9, 17)))
    mask = inputs["encoder_attention_mask"]
    images = [inputs["image_embeds"], inputs["image_embeds"][:, :3]] if family is models.framepack else [None]
    changes = [{} if image is None else {"image_embeds": image} for image in images]
    with tilewright.diffusers.enable(model, **ALL):
        sparse = []
        for lengths in ((9, 17), (20, 3), (9, 17)):
            mask.copy_(text_mask(lengths))
            sparse += [run(model, inputs, **change) for change in changes]
    for lengths in ((9, 17), (20, 3), (9, 17)):
        mask.copy_(text_mask(lengths))
        for change in changes:
            assert error(sparse.pop(0), run(model, inputs, **change)) < ROUNDING


@pytest.mark.parametrize("family", [models.hunyuan, models.framepack])
def test_a_prompt_without_tokens_does_not_reach_the_others(family, device):
    """The models make NaN of such a text (a mean over no tokens), which dense attention spreads with a weight of 0."""
    model, inputs = _with_text_that_matters(*make(family, device, grid=SMALL, lengths=(0, 17)))
    alone = {name: value[1:] if getattr(value, "shape", (0,))[0] == 2 and "indices" not in name else value for name, value in inputs.items()}
    expected = run(model, alone)
    with tilewright.diffusers.enable(model, **ALL) as enabled:
        found = run(model, inputs)
        assert enabled.report().dense_calls == {}
    assert found.isfinite().all() and error(found[1:], expected) < ROUNDING


def _holes(mask):
    return mask & (torch.arange(mask.shape[-1], device=mask.device) % 7 != 0)


MASKS = {
    "other keys": _holes,
    "a bias": lambda mask: torch.zeros_like(mask, dtype=torch.float16).masked_fill(~mask, -1000.0),
    "by query": lambda mask: mask.expand(-1, -1, mask.shape[-1], -1),
    "by head": lambda mask: mask.expand(-1, 2, -1, -1),
    "shifted": lambda mask: mask.roll(-1, -1),
}


@pytest.mark.parametrize("change", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("family", [models.hunyuan, models.framepack])
def test_another_mask_than_that_of_the_padding_stays_dense(family, change, device):
    """A model, or another version of it, may hand its attention a mask that the text's own does not tell."""
    model, inputs = _with_text_that_matters(*make(family, device, grid=SMALL, lengths=(9, 17)))

    def hook(_, args):
        return *args[:3], change(args[3]), *args[4:]

    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    for block in blocks:
        block.register_forward_pre_hook(hook)
    _agree(model, inputs, {"with an attention mask": len(blocks)})
