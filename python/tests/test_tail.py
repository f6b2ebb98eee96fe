"""Tails: what stands for the blocks that a mask drops, against their definition in float64."""

import pickle
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("tilewright")

import tilewright  # noqa: E402

BOUND = {torch.bfloat16: 4e-3, torch.float16: 6e-4}
GRADIENT_BOUND = {torch.bfloat16: 6e-3, torch.float16: 1e-3}

TAILS = ["block", ("row", 64), "row"]
# sizes (batch, heads, kv_heads, seq_q, seq_kv), block size, d, width of values, dtype, is_causal, tail
CASES = [
    ((1, 2, 2, 300, 460), (128, 64), 64, 64, torch.bfloat16, False, "block"),
    ((1, 2, 2, 300, 460), (128, 64), 64, 64, torch.bfloat16, False, ("row", 64)),
    ((1, 2, 2, 300, 460), (128, 64), 64, 64, torch.bfloat16, False, "row"),
    ((2, 4, 2, 257, 430), (64, 128), 24, 72, torch.float16, False, "block"),
    ((2, 4, 2, 257, 430), (64, 128), 24, 72, torch.float16, False, ("row", 256)),
    ((1, 2, 1, 400, 400), (64, 64), 72, 16, torch.bfloat16, True, "block"),
    ((1, 2, 1, 400, 400), (64, 64), 72, 16, torch.float16, True, "row"),
    ((1, 2, 1, 400, 300), (128, 128), 128, 128, torch.float16, True, "row"),
]
NAMES = [f"{block_q}x{block_kv}-{tail}-{is_causal}" for _, (block_q, block_kv), _, _, _, is_causal, tail in CASES]


# ---- the definition ------------------------------------------------------------------------------------------------


def of_elements(map, mask):
    """A map of blocks `[b, h, q_blocks, kv_blocks]` as one of elements `[b, h, seq_q, seq_kv]`."""
    map = torch.as_tensor(map).cpu()
    map = map.repeat_interleave(mask.BLOCK_SIZE[0], dim=-2)[..., : mask.seq_lengths[0], :]
    return map.repeat_interleave(mask.BLOCK_SIZE[1], dim=-1)[..., : mask.seq_lengths[1]]


def means_of(x, size):
    return torch.stack([run.mean(-2) for run in x.split(size, -2)], -2)


def exact(q, k, v, mask, tail):
    """`(leaves, out, lse)` in float64, `leaves` being copies of q, k and v to differentiate by. A causal mask decides within blocks."""
    leaves = [x.detach().double().cpu().requires_grad_() for x in (q, k, v)]
    group = q.shape[1] // k.shape[1]
    wide_q, wide_k, wide_v = leaves[0], *(x.repeat_interleave(group, dim=1) for x in leaves[1:])
    scale, (block_q, block_kv) = q.shape[-1] ** -0.5, mask.BLOCK_SIZE
    seq_q, seq_kv = mask.seq_lengths
    kept = of_elements(mask.to_dense(), mask)
    if mask.mask_mod == "causal":
        kept = kept & (torch.arange(seq_q)[:, None] >= torch.arange(seq_kv))
    scores = (wide_q @ wide_k.mT * scale).masked_fill(~kept, -torch.inf)

    dropped = torch.as_tensor(mask.dropped_map()).cpu()
    lengths = torch.tensor([min(block_kv, seq_kv - first) for first in range(0, seq_kv, block_kv)])
    keys, values = means_of(wide_k, block_kv), means_of(wide_v, block_kv)
    counts = dropped * lengths
    run = 1 if tail == "block" else (max(128, block_kv) if tail == "row" else tail[1]) // block_kv
    if run > 1:
        # One mean for a run whose keys may all be attended to, and else one for each of its dropped blocks.
        full = mask.full_kv_num_blocks is not None
        whole = dropped | torch.as_tensor(lists_of(mask, full)).cpu()
        run_is_whole = torch.stack([part.all(-1) for part in whole.split(run, -1)], -1)
        run_counts = torch.stack([part.sum(-1) for part in counts.split(run, -1)], -1)
        of_runs = run_is_whole.repeat_interleave(run, -1)[..., : len(lengths)]
        counts = torch.cat([counts * ~of_runs, run_counts * run_is_whole], -1)
        keys = torch.cat([keys, means_of(wide_k, run * block_kv)], -2)
        values = torch.cat([values, means_of(wide_v, run * block_kv)], -2)
    counts = counts.repeat_interleave(block_q, dim=-2)[..., :seq_q, :]
    rows = wide_q
    if tail == "block":
        rows = means_of(wide_q, block_q).repeat_interleave(block_q, dim=-2)[..., :seq_q, :]
    scores = torch.cat([scores, rows @ keys.mT * scale + counts.double().log()], -1)
    alive = (scores > -torch.inf).any(-1)
    scores = scores.masked_fill(~alive[..., None], 0)
    out = torch.where(alive[..., None], scores.softmax(-1), 0) @ torch.cat([wide_v, values], -2)
    return leaves, out, torch.where(alive, scores.logsumexp(-1), -torch.inf)


def lists_of(mask, full):
    """The map of blocks that are kept whole."""
    counts, indices = (
        (mask.full_kv_num_blocks, mask.full_kv_indices) if full else (mask.kv_num_blocks, mask.kv_indices)
    )
    made = tilewright.BlockMask(counts, indices, BLOCK_SIZE=mask.BLOCK_SIZE, seq_lengths=mask.seq_lengths)
    return made.to_dense()


def distance(found, expected):
    found = found.detach().double().cpu()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def tensors(device, sizes, dim=64, value_dim=None, dtype=torch.bfloat16, seed=0):
    batch, heads, kv_heads, seq_q, seq_kv = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, seq_q, dim), (batch, kv_heads, seq_kv, dim), (batch, kv_heads, seq_kv, value_dim or dim)
    return [torch.randn(shape, generator=generator).to(dtype).to(device) for shape in shapes]


class Call:
    def __init__(self, device, case):
        sizes, block_size, dim, value_dim, self.dtype, self.is_causal, self.tail = case
        self.q, self.k, self.v = tensors(device, sizes, dim, value_dim, self.dtype)
        self.selection = {"top_k": 0.25, "top_p": None, "block_size": block_size, "is_causal": self.is_causal}
        self.options = {"enable_gqa": True, **self.selection}

    def qkv(self, grad=False):
        return [x.clone().requires_grad_(grad) for x in (self.q, self.k, self.v)]

    def mask(self):
        return tilewright.block_mask(self.q, self.k, **self.options, scores="keys")


# ---- values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_against_the_definition(device, case):
    call = Call(device, case)
    mask, (q, k, v) = call.mask(), call.qkv(grad=True)
    assert torch.as_tensor(mask.dropped_map()).any()
    out, lse = tilewright.sparse_attention(q, k, v, **call.options, tail=call.tail, return_lse=True)
    leaves, exact_out, exact_lse = exact(q, k, v, mask, call.tail)
    assert distance(out, exact_out.detach()) < BOUND[call.dtype]
    # On a GPU the means of a row tail are rounded, as keys are.
    assert (lse.detach().cpu() - exact_lse.detach()).abs().max() < (2e-3 if call.tail == "block" or device == "cpu" else 1e-2)
    without = tilewright.sparse_attention(q, k, v, **call.options)
    assert distance(without, exact_out.detach()) > 0.1

    generator = torch.Generator().manual_seed(9)
    d_out = torch.randn(out.shape, generator=generator).to(call.dtype)
    d_lse = torch.randn(lse.shape, generator=generator)
    torch.autograd.backward([out, lse], [d_out.to(device), d_lse.to(device)])
    torch.autograd.backward([exact_out, exact_lse], [d_out.double(), d_lse.double()])
    for name, found, expected in zip("qkv", (q, k, v), leaves):
        assert found.grad.dtype == call.dtype
        apart = distance(found.grad, expected.grad)
        assert apart < GRADIENT_BOUND[call.dtype], f"d{name} is off by {apart:.2e}"


@pytest.mark.parametrize("tail", TAILS, ids=str)
def test_alike_keys_give_dense_attention(device, tail):
    """Where keys (and for the tail of a block queries) are alike within blocks, what stands for them says it all."""
    q, k, v = tensors(device, (1, 2, 2, 512, 512))
    size = 64 if tail != "row" else 128
    k = k[:, :, ::size].repeat_interleave(size, dim=2)
    q = q[:, :, ::128].repeat_interleave(128, dim=2) if tail == "block" else q
    dense = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double()).cpu()
    assert distance(tilewright.sparse_attention(q, k, v, top_k=0.2, top_p=None), dense) > 0.3
    assert distance(tilewright.sparse_attention(q, k, v, top_k=0.2, top_p=None, tail=tail), dense) < 4e-3


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("tail", TAILS, ids=str)
def test_nothing_changes_where_all_is_kept(device, tail, is_causal):
    q, k, v = tensors(device, (1, 2, 2, 300, 300))
    options = {"top_k": 1.0, "is_causal": is_causal, "return_lse": True}
    expected = tilewright.sparse_attention(q, k, v, **options)
    found = tilewright.sparse_attention(q, k, v, **options, tail=tail)
    if q.is_cuda:
        # The schedule may be another one, with its sums in another order.
        assert distance(found[0], expected[0].double().cpu()) < 4e-3
        assert (found[1] - expected[1]).abs().max() < 1e-4
    else:
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize("sizes", [(0, 2, 1, 130, 140), (1, 0, 0, 130, 140), (1, 2, 1, 0, 140), (2, 2, 1, 130, 0)], ids=str)
@pytest.mark.parametrize("tail", TAILS, ids=str)
def test_nothing_to_attend_to(device, sizes, tail):
    q, k, v = (x.requires_grad_() for x in tensors(device, sizes))
    out, lse = tilewright.sparse_attention(q, k, v, tail=tail, enable_gqa=True, return_lse=True)
    assert out.shape == q.shape and (out == 0).all() and (lse == -torch.inf).all()
    out.sum().backward()
    assert all((x.grad == 0).all() for x in (q, k, v))


# ---- ways ------------------------------------------------------------------------------------------------------------


def swapped(*tensors):
    return [x.transpose(1, 2) for x in tensors]


def bshd(call, *inputs):
    out, lse = tilewright.sparse_attention(
        *swapped(*inputs), **call.options, tail=call.tail, layout="BSHD", return_lse=True
    )
    return out.transpose(1, 2), lse


def over(make):
    """`attention` over a mask."""

    def way(call, *inputs):
        options = {"enable_gqa": True, "tail": call.tail, "return_lse": True}
        return tilewright.attention(*inputs, make(call), **options)

    return way


def with_admissible(call):
    """The same lists as those of a caller, who has an admissible mask too."""
    mask = call.mask()
    lists = tilewright.BlockMask(
        **mask.lists(), BLOCK_SIZE=mask.BLOCK_SIZE, seq_lengths=mask.seq_lengths, mask_mod=mask.mask_mod
    )
    assert lists.dropped is None
    every = tilewright.block_mask(call.q, call.k, **{**call.options, "top_k": None})
    found = lists.with_admissible(every)
    assert (found.dropped == mask.dropped).all() and found.dropped.dtype == mask.dropped.dtype
    return found


def with_returned_mask(call, *inputs):
    out, lse, mask = tilewright.sparse_attention(
        *inputs, **call.options, tail=call.tail, return_lse=True, return_mask=True
    )
    assert (mask.dropped_map() == call.mask().dropped_map()).all()
    return out, lse


def of_module(call, *inputs):
    return tilewright.SparseAttention(enable_gqa=True, **call.selection, tail=call.tail)(*inputs), None


def of_operator(call, *inputs):
    block_kv = call.selection["block_size"][1]
    tail = {"block": -1, "row": max(128, block_kv)}.get(call.tail) or call.tail[1]
    arguments = (0.25, None, *call.selection["block_size"], None, 0, 1 if call.is_causal else 0, True)
    return torch.ops.tilewright.sparse_attention(*inputs, *arguments, tail=tail, by_keys=True)


WAYS = {
    "again": lambda call, *x: tilewright.sparse_attention(*x, **call.options, tail=call.tail, return_lse=True),
    "without lse": lambda call, *x: (tilewright.sparse_attention(*x, **call.options, tail=call.tail), None),
    "BSHD": bshd,
    "attention of a mask": over(Call.mask),
    "of a mask that was pickled": over(lambda call: pickle.loads(pickle.dumps(call.mask()))),
    "of a mask that was moved": over(lambda call: call.mask().to("cpu").to(call.q.device)),
    "of lists with an admissible mask": over(with_admissible),
    "with the mask returned": with_returned_mask,
    "module": of_module,
    "operator": of_operator,
}


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_every_way_gives_the_same(device, case):
    call = Call(device, case)
    out, lse = tilewright.sparse_attention(*call.qkv(), **call.options, tail=call.tail, return_lse=True)
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    expected = None
    for name, way in WAYS.items():
        found, found_lse = way(call, *call.qkv())
        assert torch.equal(found, out) and (found_lse is None or torch.equal(found_lse, lse)), name
        inputs = call.qkv(grad=True)
        found, found_lse = way(call, *inputs)
        assert torch.equal(found, out) and (found_lse is None or torch.equal(found_lse, lse)), name
        gradients = torch.autograd.grad(found, inputs, d_out)
        expected = expected or gradients
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected)), name


@pytest.mark.parametrize("tail", TAILS, ids=str)
def test_arrays_give_what_tensors_give(tail):
    q, k, v = tensors("cpu", (1, 2, 2, 300, 460), dtype=torch.float16)
    out, lse = tilewright.sparse_attention(q, k, v, top_k=0.25, top_p=None, tail=tail, return_lse=True)
    arrays = [x.numpy() for x in (q, k, v)]
    found, found_lse, mask = tilewright.sparse_attention(
        *arrays, top_k=0.25, top_p=None, tail=tail, return_lse=True, return_mask=True
    )
    assert np.array_equal(found, out.numpy()) and np.array_equal(found_lse, lse.numpy())
    assert mask.dropped.dtype == np.int32 and np.array_equal(mask.dropped_map(), ~mask.to_dense())
    again = tilewright.BlockMask.from_dense(mask.to_dense(), seq_lengths=(300, 460)).with_unlisted_dropped()
    assert again.dropped.dtype == np.int32 and np.array_equal(again.dropped, mask.dropped)
    assert np.array_equal(tilewright.attention(*arrays, again, tail=tail), found)


@pytest.mark.parametrize("tail", TAILS, ids=str)
def test_compile_checkpoint_vmap_and_autocast(device, tail):
    torch._dynamo.reset()  # what other cases compiled counts against the limit
    inputs = tensors(device, (1, 2, 2, 300, 460))

    def call(q, k, v):
        return tilewright.sparse_attention(q, k, v, top_k=0.3, top_p=None, tail=tail)

    def of_mask(q, k, v):
        return tilewright.attention(q, k, v, tilewright.block_mask(q, k, top_k=0.3, top_p=None, scores="keys"), tail=tail)

    mask = tilewright.block_mask(*inputs[:2], top_k=0.3, top_p=None, scores="keys")
    lists = tilewright.BlockMask(**mask.lists(), seq_lengths=mask.seq_lengths)

    def of_lists(q, k, v):
        return tilewright.attention(q, k, v, lists.with_unlisted_dropped(), tail=tail)

    def gradients(call):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = call(*leaves)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(device)
        (out.float() * weights).sum().backward()
        return [out, *(x.grad for x in leaves)]

    expected = gradients(call)
    for other in (
        torch.compile(call, fullgraph=True, backend="aot_eager"),
        torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True),
        torch.compile(of_mask, fullgraph=True, backend="aot_eager"),
        torch.compile(of_lists, fullgraph=True, backend="aot_eager"),
        lambda *x: torch.utils.checkpoint.checkpoint(call, *x, use_reentrant=False),
        lambda *x: torch.utils.checkpoint.checkpoint(call, *x, use_reentrant=True),
    ):
        assert all(torch.equal(a, b) for a, b in zip(gradients(other), expected))
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(call(*(x.float() for x in inputs)), expected[0])
    with torch.no_grad():
        assert torch.equal(torch.compile(of_mask, fullgraph=True, backend="eager")(*inputs), expected[0])
        cases = [torch.stack([x, x.flip(2)]) for x in inputs]
        assert torch.equal(
            torch.func.vmap(of_mask)(*cases), torch.stack([call(*parts) for parts in zip(*cases)])
        )


@pytest.mark.parametrize("is_causal", [False, True])
def test_opcheck(device, is_causal):
    q, k, v = (x.requires_grad_() for x in tensors(device, (1, 2, 2, 200, 330)))
    mask = tilewright.block_mask(q, k, top_k=0.3, top_p=None, is_causal=is_causal)
    options, lists = (128, 64, None, 0, int(is_causal), False), tuple(mask.lists().values())
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    ops, check = torch.ops.tilewright, torch.library.opcheck
    for tail in (-1, 64, 128):
        arguments = (*lists, *options, mask.dropped_bits, tail)
        check(ops.attention.default, (q, k, v, *arguments), test_utils=tests)
        check(ops.sparse_attention.default, (q, k, v, 0.3, None, *options, tail), test_utils=tests)
        with torch.no_grad():
            out, lse = ops.attention(q, k, v, *arguments)
        plain = [x.detach() for x in (q, k, v)]
        backward = (out, lse, *plain, out, lse, *arguments)
        check(ops.attention_backward.default, backward, test_utils=("test_schema", "test_faketensor"))
    check(ops.block_mask.default, (q.detach(), k.detach(), 0.3, None, 128, 64, None, int(is_causal), False, True))


@pytest.mark.parametrize("way", ["selected", "with the mask returned"])
@pytest.mark.parametrize("tail", TAILS, ids=str)
def test_export_of_a_dynamic_sequence(device, tail, way):
    """Whose bits of dropped blocks are one word or several."""

    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            options = {"top_k": 0.3, "top_p": None, "tail": tail}
            if way == "with the mask returned":
                return tilewright.sparse_attention(q, k, v, **options, return_mask=True)[0]
            return tilewright.sparse_attention(q, k, v, **options)

    shapes = ({2: torch.export.Dim("seq", min=200, max=5000)},) * 3
    inputs = tuple(tensors(device, (1, 2, 2, 300, 300)))
    program = torch.export.export(Layer(), inputs, dynamic_shapes=shapes).module()
    for length in (411, 256, 2600):
        inputs = tensors(device, (1, 2, 2, length, length))
        assert torch.equal(program(*inputs), Layer()(*inputs))


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_kv", [64, 31 * 64 + 1, 32 * 64, 33 * 64 - 5, 70 * 64])
def test_the_bits_of_dropped_blocks(device, seq_kv):
    q, k, _ = tensors(device, (2, 2, 2, 200, seq_kv))
    mask = tilewright.block_mask(q, k, top_k=0.3, top_p=None)
    assert mask.dropped.dtype == torch.int32 and mask.dropped.shape == (2, 2, 2, -(-seq_kv // 2048))
    assert torch.equal(mask.dropped_map(), ~mask.to_dense())
    lists = tilewright.BlockMask.from_dense(mask.to_dense(), seq_lengths=(200, seq_kv))
    assert lists.dropped is None and lists.dropped_map() is None
    assert torch.equal(lists.with_unlisted_dropped().dropped, mask.dropped)
    causal = tilewright.block_mask(q, k, top_k=0.3, top_p=None, is_causal=True)
    every = tilewright.block_mask(q, k, top_k=None, top_p=None, is_causal=True)
    whole = lists_of(every, True)
    assert torch.equal(causal.dropped_map(), whole & ~causal.to_dense()) and not every.dropped_map().any()
    # A map of one batch and head is shared.
    shared = tilewright.BlockMask(
        *(x[:1, :1] for x in (every.kv_num_blocks, every.kv_indices)),
        *(x[:1, :1] for x in (every.full_kv_num_blocks, every.full_kv_indices)),
        seq_lengths=(200, seq_kv),
        mask_mod="causal",
    )
    assert torch.equal(lists.with_admissible(shared).dropped_map(), whole & ~lists.to_dense())
    # Of one without a function, all that it lists.
    some = whole | lists.to_dense()
    assert torch.equal(lists.with_admissible(some).dropped_map(), some & ~lists.to_dense())


@pytest.mark.parametrize("tail", TAILS, ids=str)
def test_forbidden_keys_do_not_show(device, tail):
    """Two documents, of which the mask lists some blocks: what is in the other document changes nothing."""
    q, k, v = tensors(device, (1, 2, 2, 512, 512))
    ids = (torch.arange(512, device=device) >= 300).int()
    documents = tilewright.mask_mod(lambda b, h, q, kv: ids[q] == ids[kv])
    every = tilewright.block_mask(q, k, top_k=None, top_p=None, mask_mod=documents)
    few = torch.rand((1, 2, 4, 8), generator=torch.Generator().manual_seed(2)).to(device) < 0.4
    mask = tilewright.BlockMask.from_dense(few & every.to_dense(), seq_lengths=(512, 512), mask_mod=documents)
    mask = mask.with_admissible(every)
    assert mask.dropped_map().any()
    selected = {"top_k": 0.1, "top_p": None, "mask_mod": documents, "tail": tail}
    calls = [
        lambda *x: tilewright.attention(*x, mask, tail=tail),
        lambda *x: tilewright.sparse_attention(*x, **selected),
    ]
    for call in calls:
        out = call(q, k, v)
        # Queries of the first document, and keys of the second.
        other_k, other_v = k.clone(), v.clone()
        other_k[:, :, 320:], other_v[:, :, 320:] = 3.0, -50.0
        assert torch.equal(call(q, other_k, other_v)[:, :, :256], out[:, :, :256])


def test_masks_of_flex_attention(device):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    q, k, v = tensors(device, (1, 2, 2, 512, 512))
    every = flex.create_block_mask(lambda b, h, q, kv: q >= kv, 1, 1, 512, 512, device=device, BLOCK_SIZE=(128, 64))
    with pytest.raises(ValueError, match="does not say which of the blocks it leaves out are dropped"):
        tilewright.attention(q, k, v, every, tail="row")
    with pytest.raises(ValueError, match="does not say which of the blocks it leaves out are dropped"):
        tilewright.sparse_attention(q, k, v, mask=every, tail="row")
    selected = tilewright.block_mask(q, k, top_k=0.1, top_p=None, is_causal=True)
    lists = selected.to_flex()
    with pytest.raises(ValueError, match="does not say which"):
        tilewright.attention(q, k, v, lists, tail="block")
    mask = tilewright.BlockMask.from_flex(lists).with_admissible(every)
    assert torch.equal(mask.dropped, selected.dropped)
    assert torch.equal(
        tilewright.attention(q, k, v, mask, tail="block"), tilewright.attention(q, k, v, selected, tail="block")
    )


# ---- refusals --------------------------------------------------------------------------------------------------------


def refused(needed, *calls, error=ValueError):
    for call in calls:
        with pytest.raises(error, match=re.escape(needed)):
            call()


@pytest.mark.parametrize(
    "tail, error, needed",
    [
        ("blocks", ValueError, "tail is 'blocks', needed None, \"block\", \"row\" or (\"row\", keys), as (\"row\", 256)"),
        (True, ValueError, "tail is True, needed None"),
        (128, ValueError, "tail is 128, needed None"),
        (("block", 64), ValueError, "tail is ('block', 64), needed None"),
        (("row",), ValueError, "tail is ('row',), needed None"),
        (("row", 100), ValueError, "a row tail over 100 keys, needed a multiple of the 64 keys of a sparse block: take 64 or 128"),
        (("row", 0), ValueError, "a row tail over 0 keys, needed a multiple of the 64 keys"),
        (("row", -64), ValueError, "a row tail over -64 keys, needed a multiple of the 64 keys"),
        (("row", 64.0), TypeError, "tail is ('row', 64.0), whose keys are of type float, needed a whole number"),
        (("row", True), TypeError, "whose keys are of type bool"),
    ],
    ids=str,
)
def test_tails_that_there_are_not(device, tail, error, needed):
    q, k, v = tensors(device, (1, 1, 1, 100, 200))
    mask = tilewright.block_mask(q, k)
    refused(
        needed,
        lambda: tilewright.sparse_attention(q, k, v, tail=tail),
        lambda: tilewright.sparse_attention(q.requires_grad_(), k, v, tail=tail),
        lambda: tilewright.sparse_attention(q, k, v, tail=tail, return_mask=True),
        lambda: tilewright.attention(q, k, v, mask, tail=tail),
        lambda: tilewright.SparseAttention(tail=tail),
        error=error,
    )
    with pytest.raises(ValueError, match="a row tail over 64 keys, needed a multiple of the 128 keys of a sparse block"):
        tilewright.sparse_attention(q, k, v, tail=("row", 64), block_size=(128, 128))
    found = tilewright.sparse_attention(q, k, v, tail=("row", np.int64(64)))
    assert torch.equal(found, tilewright.sparse_attention(q, k, v, tail=["row", 64]))


def test_a_score_function_beside_a_tail(device):
    q, k, v = tensors(device, (1, 1, 1, 100, 200))

    def soft(score, b, h, q, kv):
        return score * 0.5

    soft = tilewright.score_mod(soft)
    mask = tilewright.block_mask(q, k)
    needed = "a tail beside the score function `soft`: a mean stands for many keys"
    operator, number = torch.ops.tilewright.sparse_attention, soft.number
    refused(
        needed,
        lambda: tilewright.sparse_attention(q, k, v, tail="block", score_mod=soft),
        lambda: tilewright.attention(q, k, v, mask, tail="row", score_mod=soft),
        lambda: tilewright.SparseAttention(tail="row", score_mod=soft),
        # The operators ask the library itself, which says the same.
        lambda: operator(q, k, v, 0.5, None, 128, 64, None, number, 0, False, -1),
    )


def test_what_operators_refuse(device):
    q, k, v = tensors(device, (1, 1, 1, 100, 200))
    operator = torch.ops.tilewright.sparse_attention
    arguments = (q, k, v, 0.5, None, 128, 64, None, 0, 0, False)
    refused(
        "a row tail over 100 keys, needed a multiple of the 64 keys of a sparse block: take 64 or 128",
        lambda: operator(*arguments, 100),
    )
    refused("tail is number -2, needed 0 for none, -1 for the block tail", lambda: operator(*arguments, -2))
    mask = tilewright.block_mask(q, k, top_k=0.3, top_p=None)
    over = (q, k, v, *mask.lists().values(), 128, 64, None, 0, 0, False)
    attention = torch.ops.tilewright.attention
    refused("the mask does not say which of the blocks", lambda: attention(*over, None, -1))
    for shape in [(1, 1, 1, 2), (1, 1, 2), (1, 2, 1), (1,)]:
        wrong = mask.dropped.new_zeros(shape)
        refused("dropped", lambda wrong=wrong: attention(*over, wrong, -1))
    refused("dropped", lambda: attention(*over, mask.dropped.float(), -1), error=(TypeError, ValueError))
    refused("is on", lambda: attention(*over, mask.dropped.to("meta"), -1))
    assert torch.equal(attention(*over, mask.dropped, 0)[0], attention(*over)[0])
    assert torch.equal(attention(*over, mask.dropped, -1)[0], attention(*over, mask.dropped_bits, -1)[0])


def test_masks_that_do_not_say_what_they_drop(device):
    q, k, v = tensors(device, (1, 2, 2, 300, 300))
    map = torch.ones(1, 1, 3, 5, dtype=torch.bool, device=device)
    lists = tilewright.BlockMask.from_dense(map, seq_lengths=(300, 300))
    needed = "the mask does not say which of the blocks it leaves out are dropped and which are forbidden: give it `with_admissible"
    refused(
        needed,
        lambda: tilewright.attention(q, k, v, map, tail="row"),
        lambda: tilewright.attention(q, k, v, lists, tail="row"),
        lambda: tilewright.sparse_attention(q, k, v, mask=map, tail="block"),
        lambda: tilewright.SparseAttention(tail="row")(q, k, v, mask=lists),
        lambda: torch.compile(
            lambda q: tilewright.attention(q, k, v, lists, tail="row"), backend="eager"
        )(q),
    )
    tilewright.attention(q, k, v, lists)
    # A function that comes with the call may forbid what the mask drops.
    dropping, keep = lists.with_unlisted_dropped(), tilewright.mask_mod(lambda b, h, q, kv: kv < q + 9)
    needed = "the mask was made without this function, which may forbid keys of the blocks that the mask drops"
    refused(
        needed,
        lambda: tilewright.attention(q, k, v, dropping, tail="row", is_causal=True),
        lambda: tilewright.attention(q, k, v, dropping, tail="row", mask_mod=keep),
    )


def test_admissible_masks_that_do_not_fit(device):
    def mask(shape=(1, 2), seqs=(300, 300), block_size=(128, 64), device=device, mask_mod=None):
        grid = (-(-seq // block) for seq, block in zip(seqs, block_size))
        map = torch.ones(*shape, *grid, dtype=torch.bool, device=device)
        return tilewright.BlockMask.from_dense(map, seq_lengths=seqs, BLOCK_SIZE=block_size, mask_mod=mask_mod)

    ours = mask()
    for other, needed in [
        (mask(seqs=(300, 200)), "the admissible mask has seq_kv 200, the mask has 300"),
        (mask(seqs=(100, 300)), "the admissible mask has seq_q 100, the mask has 300"),
        (mask(shape=(1, 3)), "the admissible mask has heads 3, the mask has 2"),
        (mask(shape=(2, 1)), "the admissible mask has batch 2, the mask has 1"),
        (mask(block_size=(64, 64)), "the admissible mask has blocks of (64, 64), the mask of (128, 64)"),
        (mask(device="meta"), "the admissible mask on meta: move it"),
        (mask(mask_mod="causal"), "the admissible mask has the function 'causal' and no full blocks"),
    ]:
        refused(needed, lambda other=other: ours.with_admissible(other))
    refused("the mask is a str, needed a tilewright.BlockMask", lambda: ours.with_admissible("all"), error=TypeError)
    array = np.ones((1, 2, 3, 5), dtype=bool)
    refused("make both of one framework", lambda: ours.with_admissible(array), error=TypeError)
    wrong = torch.zeros((1, 2, 3, 2), dtype=torch.int32, device=device)
    lists = ours.lists()
    needed = "dropped has shape (1, 2, 3, 2), needed (1, 2, 3, 1)"
    refused(needed, lambda: tilewright.BlockMask(**lists, seq_lengths=(300, 300), dropped=wrong))
    refused("dropped is of type list", lambda: tilewright.BlockMask(**lists, seq_lengths=(300, 300), dropped=[1]), error=TypeError)


def test_the_module_shows_its_tail():
    assert "tail=('row', 256)" in repr(tilewright.SparseAttention(tail=("row", 256)))
    assert "tail=None" in repr(tilewright.SparseAttention())


@pytest.mark.parametrize(
    "keys, error, message",
    [
        (2**63, ValueError, "a row tail over 9223372036854775808 keys, needed fewer than 2³¹"),
        (torch.tensor([64, 64]), TypeError, "whose keys are of type Tensor, needed a whole number"),
        (torch.tensor(64.0), TypeError, "whose keys are of type Tensor, needed a whole number"),
        (torch.tensor(True), TypeError, "whose keys are of type Tensor, needed a whole number"),
    ],
    ids=str,
)
def test_keys_of_a_mean_that_are_no_number(keys, error, message):
    q, k, v = tensors("cpu", (1, 2, 2, 100, 100))
    with pytest.raises(error, match=re.escape(message)):
        tilewright.sparse_attention(q, k, v, tail=("row", keys))


def test_an_admissible_mask_of_more_heads_than_the_mask():
    q, k, v = tensors("cpu", (1, 2, 2, 300, 460))
    map = torch.rand(1, 1, 3, 8, generator=torch.Generator().manual_seed(1)) < 0.3
    every = tilewright.block_mask(q, k, top_k=None, top_p=None, mask_mod=tilewright.mask_mod(lambda b, h, i, j: i >= j - 200))
    sizes = {"seq_lengths": (300, 460)}
    with pytest.raises(ValueError, match="the admissible mask has heads 2, the mask has 1, for all of them: .* `map.expand\\(1, 2, -1, -1\\)`"):
        tilewright.BlockMask.from_dense(map, **sizes).with_admissible(every)
    each = tilewright.BlockMask.from_dense(map.expand(1, 2, -1, -1), **sizes).with_admissible(every)
    assert torch.isfinite(tilewright.attention(q, k, v, each, tail="block")).all()
