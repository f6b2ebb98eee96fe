"""Every way to call an attention gives the bits that `sparse_attention` gives: values of another width, heads that share key heads, every
block size, and of each dimension none."""

import numpy as np
import pytest

from oracle import attend, distance, expand

torch = pytest.importorskip("torch")
tilewright = pytest.importorskip("tilewright")

# batch, heads, kv_heads, seq_q, seq_kv
SIZES = [
    (1, 2, 2, 130, 140),
    (2, 2, 1, 130, 140),
    (0, 2, 1, 130, 140),
    (1, 0, 0, 130, 140),
    (1, 2, 1, 0, 140),
    (2, 2, 1, 130, 0),
    (1, 2, 2, 0, 0),
]
# block size, d, width of values, dtype, is_causal
RULES = [
    ((128, 64), 16, 16, torch.bfloat16, False),
    ((128, 128), 24, 72, torch.float16, True),
    ((64, 64), 72, 16, torch.bfloat16, True),
    ((64, 128), 24, 72, torch.float16, False),
]


class Call:
    def __init__(self, device, sizes, rule):
        batch, heads, kv_heads, seq_q, seq_kv = sizes
        self.block_size, d, value_d, self.dtype, self.is_causal = rule
        random = torch.Generator().manual_seed(7)

        def tensor(*shape):
            return torch.randn(*shape, generator=random).to(self.dtype).to(device)

        self.q, self.k = tensor(batch, heads, seq_q, d), tensor(batch, kv_heads, seq_kv, d)
        self.v, self.d_out = tensor(batch, kv_heads, seq_kv, value_d), tensor(batch, heads, seq_q, value_d)
        self.selection = {"top_k": 0.4, "top_p": 0.3, "block_size": self.block_size, "is_causal": self.is_causal}
        self.options = {"enable_gqa": True, **self.selection}

    def qkv(self, grad=False):
        return [tensor.clone().requires_grad_(grad) for tensor in (self.q, self.k, self.v)]

    def mask(self):
        return tilewright.block_mask(self.q, self.k, **self.options)


def swapped(*tensors):
    return [tensor.transpose(1, 2) for tensor in tensors]


def bshd(call, made):
    q, k, v = (made(tensor) for tensor in swapped(*call.qkv()))
    out, lse = tilewright.sparse_attention(q, k, v, **call.options, layout="BSHD", return_lse=True)
    return out.transpose(1, 2), lse


def with_gradient(call):
    q, k, v = call.qkv(grad=True)
    return tilewright.sparse_attention(q, k, v, **call.options, return_lse=True)


def of_mask(call):
    mask = call.mask()
    return tilewright.attention(*call.qkv(), mask, enable_gqa=True, is_causal=call.is_causal, return_lse=True)


def with_mask(call):
    options = {"enable_gqa": True, "is_causal": call.is_causal, "return_lse": True}
    return tilewright.sparse_attention(*call.qkv(), mask=call.mask(), **options)


def with_returned_mask(call):
    out, lse, mask = tilewright.sparse_attention(*call.qkv(), **call.options, return_lse=True, return_mask=True)
    assert (mask.to_dense() == call.mask().to_dense()).all()
    return out, lse


def of_module(call):
    module = tilewright.SparseAttention(enable_gqa=True, **call.selection)
    return module(*call.qkv()), None


def of_operator(call):
    causal = 1 if call.is_causal else 0
    arguments = (0.4, 0.3, *call.block_size, None, 0, causal, True)
    return torch.ops.tilewright.sparse_attention(*call.qkv(), *arguments)


WAYS = {
    "again": lambda call: tilewright.sparse_attention(*call.qkv(), **call.options, return_lse=True),
    "without lse": lambda call: (tilewright.sparse_attention(*call.qkv(), **call.options), None),
    "BSHD views": lambda call: bshd(call, lambda tensor: tensor),
    "BSHD tensors": lambda call: bshd(call, torch.Tensor.contiguous),
    "with a gradient": with_gradient,
    "attention of a mask": of_mask,
    "sparse_attention with a mask": with_mask,
    "with the mask returned": with_returned_mask,
    "module": of_module,
    "operator": of_operator,
}


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_way_gives_the_same(device, sizes, rule):
    call = Call(device, sizes, rule)
    out, lse = tilewright.sparse_attention(*call.qkv(), **call.options, return_lse=True)
    assert out.shape == call.d_out.shape and lse.shape == call.d_out.shape[:3]
    assert out.dtype == call.dtype and lse.dtype == torch.float32
    if out.numel() > 0 and call.k.numel() > 0:
        seqs = (call.q.shape[2], call.k.shape[2])
        keep = expand(np.asarray(call.mask().to_dense().cpu()) > 0, call.block_size, seqs)
        if call.is_causal:
            keep = keep & (np.arange(seqs[0])[:, None] >= np.arange(seqs[1]))
        expected, sums = attend(*(x.float().cpu().numpy() for x in (call.q, call.k, call.v)), keep)
        assert distance(out.float().cpu(), expected) < (6e-4 if call.dtype == torch.float16 else 4e-3)
        assert np.abs(lse.cpu().numpy() - sums).max() < 1e-3
    else:
        assert (out == 0).all() and (lse == -torch.inf).all()
    for name, way in WAYS.items():
        found, found_lse = way(call)
        assert found.shape == out.shape and torch.equal(found, out), name
        assert found_lse is None or torch.equal(found_lse, lse), name


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_way_gives_the_same_gradients(device, sizes, rule):
    call = Call(device, sizes, rule)
    mask = call.mask()
    options = {"enable_gqa": True, "is_causal": call.is_causal}
    ways = {
        "sparse_attention": lambda q, k, v: tilewright.sparse_attention(q, k, v, **call.options),
        "attention of a mask": lambda q, k, v: tilewright.attention(q, k, v, mask, **options),
        "BSHD": lambda q, k, v: tilewright.sparse_attention(
            *swapped(q, k, v), **call.options, layout="BSHD"
        ).transpose(1, 2),
        "module": lambda q, k, v: tilewright.SparseAttention(enable_gqa=True, **call.selection)(q, k, v),
    }
    expected = None
    for name, way in ways.items():
        inputs = call.qkv(grad=True)
        found = torch.autograd.grad(way(*inputs), inputs, call.d_out)
        assert [x.shape for x in found] == [x.shape for x in inputs], name
        assert all(x.isfinite().all() for x in found), name
        if call.q.numel() == 0 or call.k.numel() == 0:
            assert all((x == 0).all() for x in found), name
        expected = expected or found
        assert all(torch.equal(a, b) for a, b in zip(found, expected)), name
