"""Masks that go to FlexAttention and come back: lists and mask functions."""

import functools

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
flex = pytest.importorskip("torch.nn.attention.flex_attention")

import tilewright  # noqa: E402

SEQ = 300
REACH = 40


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((1, 2, SEQ, 64), generator=generator).half() for _ in range(3)]


def make_window(size):
    return lambda b, h, q, kv: (q - kv < size) & (kv - q < size)


def reaching(b, h, q, kv):
    return q - kv < REACH


def with_default(b, h, q, kv, size=30):
    return (q - kv < size) & (h >= 0)


def of_parts(size, b, h, q, kv):
    return kv - q < size


IDS = torch.arange(SEQ) // 77

FUNCTIONS = {
    "none": {},
    "is_causal": dict(is_causal=True),
    "a closure": dict(mask_mod=tilewright.mask_mod(make_window(50))),
    "a bound closure": dict(mask_mod=tilewright.mask_mod(make_window(50)).bind(size=90)),
    "a bound global": dict(mask_mod=tilewright.mask_mod(reaching).bind(REACH=130)),
    "a bound default": dict(mask_mod=tilewright.mask_mod(with_default).bind(size=70)),
    "a partial": dict(mask_mod=tilewright.mask_mod(functools.partial(of_parts, 60))),
    "documents": dict(mask_mod=tilewright.mask_mod(lambda b, h, q, kv: IDS[q] == IDS[kv])),
}


def dense_of(mask):
    """Which elements FlexAttention's kernels keep: all of full blocks, and of partial blocks what mask_mod says."""
    rows, columns = (torch.arange(SEQ) // size for size in mask.BLOCK_SIZE)
    b, h, q, kv = torch.meshgrid(*(torch.arange(n) for n in (*mask.kv_num_blocks.shape[:2], SEQ, SEQ)), indexing="ij")

    def blocks(counts, indices):
        lists = dict(seq_lengths=mask.seq_lengths, BLOCK_SIZE=mask.BLOCK_SIZE)
        return tilewright.BlockMask(counts, indices, **lists).to_dense()[:, :, rows][..., columns]

    keep = blocks(mask.kv_num_blocks, mask.kv_indices) & mask.mask_mod(b, h, q, kv)
    return keep if mask.full_kv_num_blocks is None else keep | blocks(mask.full_kv_num_blocks, mask.full_kv_indices)


@pytest.mark.parametrize("options", FUNCTIONS.values(), ids=FUNCTIONS)
def test_both_masks_keep_the_same(options):
    q, k, v = tensors()
    mask = tilewright.block_mask(q, k, top_k=0.5, top_p=None, **options)
    made = mask.to_flex()
    direct = tilewright.attention(q, k, v, mask)
    assert torch.equal(tilewright.attention(q, k, v, made), direct)
    # What PyTorch computes of the mask, without a kernel of ours.
    scores = (q.double() @ k.double().mT / 8).masked_fill(~dense_of(made), -torch.inf)
    expected = scores.softmax(-1).nan_to_num(0.0) @ v.double()
    assert (direct.double() - expected).abs().max() < 2e-3
    again = tilewright.BlockMask.from_flex(made)
    assert again.mask_mod == mask.mask_mod
    assert torch.equal(tilewright.attention(q, k, v, again), direct)


def test_a_function_that_came_from_flex_attention_goes_back():
    window = make_window(50)
    mask = flex.create_block_mask(window, None, None, SEQ, SEQ, device="cpu", BLOCK_SIZE=(128, 64))
    assert tilewright.BlockMask.from_flex(mask).to_flex().mask_mod is window


def test_what_has_no_python_function_is_refused():
    q, k, _ = tensors()
    mask = tilewright.block_mask(q, k)
    mask.mask_mod = "windowed"
    with pytest.raises(TypeError, match="mask_mod is 'windowed'.*needed an object of tilewright.mask_mod"):
        mask.to_flex()
    bound = tilewright.mask_mod(functools.partial(reaching)).bind(REACH=130)
    with pytest.raises(ValueError, match="bound to REACH, and its partial cannot be given other values"):
        tilewright.block_mask(q, k, mask_mod=bound).to_flex()
    with pytest.raises(TypeError, match="lists are of type ndarray, needed torch.Tensor"):
        tilewright.block_mask(q.numpy(), k.numpy()).to_flex()


def test_a_sliced_mask_says_the_same_everywhere():
    q, k, v = tensors()
    whole = flex.create_block_mask(make_window(50), 1, 2, SEQ, SEQ, device="cpu", BLOCK_SIZE=(128, 64))
    sliced = whole[:, 0:2]
    messages = []
    for call in (lambda: tilewright.attention(q, k, v, sliced), lambda: tilewright.mask_mod_of(sliced)):
        with pytest.raises(ValueError, match="the BlockMask was sliced, which resets its mask_mod") as caught:
            call()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    with pytest.raises(tilewright.TranslationError, match="sliced.mask_mod = whole.mask_mod"):
        tilewright.mask_mod(sliced.mask_mod)
    sliced.mask_mod = whole.mask_mod
    assert tilewright.mask_mod_of(sliced) == tilewright.mask_mod_of(whole)
    # Without partial blocks there is nothing to decide.
    full = flex.BlockMask.from_kv_blocks(torch.zeros(1, 2, 3, dtype=torch.int32), torch.zeros(1, 2, 3, 5, dtype=torch.int32),
                                         BLOCK_SIZE=(128, 64), seq_lengths=(SEQ, SEQ))[:, 0:2]  # fmt: skip
    assert tilewright.mask_mod_of(full) is None
