"""Tensors whose memory does not hold what they stand for: lazily negated views, and zeros without memory."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import tilewright  # noqa: E402


def tensors(device):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((1, 2, 300, 64), generator=generator).half().to(device) for _ in range(4)]


def negated(x):
    """A view that stands for `x`, in whose memory is `-x`."""
    view = torch._neg_view(-x)
    assert view.is_neg() and torch.equal(view, x)
    return view


def imaginary(x):
    """The same as the imaginary part of a conjugate, which is how programs come by one."""
    view = torch.complex(torch.zeros_like(x, dtype=torch.float32), -x.float()).to(torch.complex32).conj().imag
    assert view.is_neg() and torch.equal(view, x)
    return view


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("lazy", [negated, imaginary])
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("layout", ["BHSD", "BSHD"])
def test_operands(device, lazy, which, layout):
    qkv = tensors(device)[:3]
    if layout == "BSHD":
        qkv = [x.transpose(1, 2).contiguous() for x in qkv]
    lazily = [lazy(x) if i in which else x for i, x in enumerate(qkv)]
    options = {"top_k": 0.4, "layout": layout}
    expected, expected_lse = tilewright.sparse_attention(*qkv, return_lse=True, **options)
    out, lse = tilewright.sparse_attention(*lazily, return_lse=True, **options)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse) and not out.is_neg()
    mask = tilewright.block_mask(*lazily[:2], **options)
    assert torch.equal(mask.to_dense(), tilewright.block_mask(*qkv[:2], **options).to_dense())
    assert torch.equal(tilewright.attention(*lazily, mask, layout=layout), expected)
    with torch.inference_mode():
        assert torch.equal(tilewright.sparse_attention(*lazily, **options), expected)


@pytest.mark.parametrize("full", [False, True])
def test_lists_of_masks(device, full):
    q, k, v, _ = tensors(device)
    mask = tilewright.block_mask(q, k, top_k=0.5, is_causal=full)
    lists = {name: list for name, list in mask.lists().items() if list is not None}
    assert len(lists) == (4 if full else 2)
    expected = tilewright.attention(q, k, v, mask)
    for name in lists:
        one = {**lists, name: negated(lists[name])}
        again = tilewright.BlockMask(**one, seq_lengths=(300, 300), mask_mod=mask.mask_mod)
        assert torch.equal(tilewright.attention(q, k, v, again), expected), name
        assert torch.equal(again.to_dense(), mask.to_dense()), name


def test_gradients_of_the_result(device):
    q, k, v, d_out = tensors(device)
    mask = tilewright.block_mask(q, k, top_k=0.5)
    out, lse = tilewright.attention(q, k, v, mask, return_lse=True)
    d_lse = torch.randn_like(lse)
    rest = (mask.kv_num_blocks, mask.kv_indices, None, None, 128, 64, None, 0, 0, False)
    rows = [d_out, d_lse, q, k, v, out, lse]
    expected = tilewright._native.attention_backward(*rows, *rest)
    for i in range(len(rows)):
        lazily = [negated(x) if i == j else x for j, x in enumerate(rows)]
        for backward in (tilewright._native.attention_backward, torch.ops.tilewright.attention_backward):
            found = backward(*lazily, *rest)
            # Sums of the GPU's atomics differ in the last bits.
            assert all(torch.allclose(a.float(), b.float(), atol=2e-2) for a, b in zip(found, expected, strict=True)), i
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    tilewright.attention(*leaves, mask).backward(negated(d_out))
    plain = [x.clone().requires_grad_() for x in (q, k, v)]
    tilewright.attention(*plain, mask).backward(d_out)
    assert all(torch.allclose(a.grad.float(), b.grad.float(), atol=2e-2) for a, b in zip(leaves, plain, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_token_grids(device, dtype):
    grid = tilewright.TokenGrid((5, 6, 10))
    x = torch.randn(2, 300, 64, device=device).to(dtype)
    moved = grid.regroup(negated(x), 1)
    assert torch.equal(moved, grid.regroup(x, 1)) and torch.equal(grid.restore(negated(moved), 1), x)


def test_zeros_without_memory(device):
    q, k, v, _ = tensors(device)
    zeros = torch._efficientzerotensor(v.shape, dtype=v.dtype, device=device)
    assert zeros._is_zerotensor()
    assert torch.equal(tilewright.sparse_attention(q, k, zeros, top_k=0.4), torch.zeros_like(v))
    expected = tilewright.sparse_attention(torch.zeros_like(q), k, v, top_k=0.4)
    assert torch.equal(tilewright.sparse_attention(zeros, k, v, top_k=0.4), expected)


@pytest.mark.gpu
def test_an_output_is_written_as_it_is():
    grid = tilewright.TokenGrid((5, 6, 10))
    x = torch.randn(2, 300, 64, device="cuda")
    with pytest.raises(ValueError, match="the result is lazily negated"):
        grid._native.move(x, torch._neg_view(torch.empty_like(x)), False)
