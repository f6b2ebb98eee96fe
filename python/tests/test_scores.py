"""Blocks scored by keys: against the definition, on every way that selects."""

import pickle

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tilewright")

import tilewright  # noqa: E402

CASES = [
    ((1, 2, 2, 300, 460), (128, 64), 64, torch.bfloat16),
    ((2, 4, 2, 257, 431), (64, 128), 24, torch.float16),
    ((1, 2, 1, 400, 66), (64, 64), 72, torch.bfloat16),
    ((1, 1, 1, 130, 1027), (128, 128), 128, torch.float16),
]


def tensors(device, sizes, dim, dtype):
    batch, heads, kv_heads, seq_q, seq_kv = sizes
    generator = torch.Generator().manual_seed(3)
    shapes = (batch, heads, seq_q, dim), (batch, kv_heads, seq_kv, dim), (batch, kv_heads, seq_kv, dim)
    return [torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes]


def means(x, size):
    return torch.stack([run.float().mean(-2) for run in x.cpu().split(size, -2)], -2)


def scores_of(q, k, block_size):
    """The largest product of a block's mean query, times the scale, with the means of four keys each: `[b, h, q_blocks, kv_blocks]`."""
    scaled = (means(q, block_size[0]) * q.shape[-1] ** -0.5).to(q.dtype).double()
    fine = means(k, 4).to(k.dtype).double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    runs = (scaled @ fine.mT).split(block_size[1] // 4, -1)
    return torch.stack([run.amax(-1) for run in runs], -1)


@pytest.mark.parametrize("sizes, block_size, dim, dtype", CASES)
def test_the_best_by_definition_are_kept(device, sizes, block_size, dim, dtype):
    q, k, _ = tensors(device, sizes, dim, dtype)
    mask = tilewright.block_mask(
        q, k, top_k=0.3, top_p=None, block_size=block_size, enable_gqa=True, scores="keys"
    )
    kept, scores = torch.as_tensor(mask.to_dense()).cpu(), scores_of(q, k, block_size)
    lowest = scores.masked_fill(~kept, torch.inf).amin(-1)
    highest = scores.masked_fill(kept, -torch.inf).amax(-1)
    # Sums in another order may swap scores that are next to each other.
    assert (lowest >= highest - 2e-2 * highest.abs().clamp(min=0.1)).all()
    by_means = tilewright.block_mask(q, k, top_k=0.3, top_p=None, block_size=block_size, enable_gqa=True)
    assert kept.sum() == torch.as_tensor(by_means.to_dense()).sum()
    if scores.shape[-1] > 2:
        assert not torch.equal(kept, torch.as_tensor(by_means.to_dense()).cpu())


def test_a_few_keys_are_found(device):
    """Keys that the queries look for, a few of a block each: their block's mean says nothing of them."""
    q, k, v = tensors(device, (1, 1, 1, 128, 1024), 64, torch.bfloat16)
    q[:] = 1.0
    k[:, :, 300:304] = 2.0
    k[:, :, 256:300] = -0.3
    found = {scores: tilewright.block_mask(q, k, top_k=0.05, top_p=None, scores=scores) for scores in ("means", "keys")}
    assert torch.as_tensor(found["keys"].to_dense())[0, 0, 0, 4]
    assert not torch.as_tensor(found["means"].to_dense())[0, 0, 0, 4]


@pytest.mark.parametrize("tail", [None, "block", "row"])
@pytest.mark.parametrize("scores", [None, "means", "keys"])
def test_every_way_selects_the_same(device, tail, scores):
    torch._dynamo.reset()  # what other cases compiled counts against the limit
    q, k, v = tensors(device, (1, 4, 2, 300, 700), 64, torch.bfloat16)
    options = {"top_k": 0.2, "top_p": 0.1, "enable_gqa": True}
    by = scores or ("means" if tail is None else "keys")
    mask = tilewright.block_mask(q, k, **options, scores=by)
    expected = tilewright.attention(q, k, v, mask, enable_gqa=True, tail=tail)
    module = tilewright.SparseAttention(**options, tail=tail, scores=scores)
    assert f"scores={scores!r}" in repr(module)
    compiled = torch.compile(lambda *x: tilewright.sparse_attention(*x, **options, tail=tail, scores=scores), fullgraph=True)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    ways = {
        "function": tilewright.sparse_attention(q, k, v, **options, tail=tail, scores=scores),
        "with the mask": tilewright.sparse_attention(q, k, v, **options, tail=tail, scores=scores, return_mask=True)[0],
        "module": pickle.loads(pickle.dumps(module))(q, k, v),
        "compiled": compiled(q, k, v),
        "with gradients": tilewright.sparse_attention(*leaves, **options, tail=tail, scores=scores),
    }
    for way, out in ways.items():
        assert torch.equal(out, expected), way
    ways["with gradients"].float().sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_other_scores_are_refused(device):
    q, k, v = tensors(device, (1, 1, 1, 128, 128), 64, torch.bfloat16)
    needed = "scores is 'mean', needed \"means\", \"keys\" or None"
    for call in [
        lambda: tilewright.sparse_attention(q, k, v, scores="mean"),
        lambda: tilewright.block_mask(q, k, scores="mean"),
        lambda: tilewright.SparseAttention(scores="mean"),
        lambda: tilewright.sparse_attention(q, k, v, tail="row", scores="mean"),
        lambda: tilewright.sparse_attention(q, k, v, scores="mean", return_mask=True),
    ]:
        with pytest.raises(ValueError, match=needed):
            call()
