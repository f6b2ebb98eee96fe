"""What a call refuses, and in which words: derivatives, functions that a mask cannot take, tensors and options that do not fit."""

import numpy as np
import pytest
from oracle import attend, distance

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.autograd.forward_ad as forward_ad  # noqa: E402

import tilewright  # noqa: E402


def tensors(device="cpu", shape=(1, 2, 300, 64)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).bfloat16().to(device) for _ in range(3)]


# ---- derivatives -------------------------------------------------------------------------------------------------


def calls(k, v):
    mask = tilewright.block_mask(k, k, top_k=0.5)
    return [
        lambda q: tilewright.sparse_attention(q, k, v),
        lambda q: tilewright.sparse_attention(k, k, q, return_lse=True)[0],
        lambda q: tilewright.sparse_attention(q, k, v, return_mask=True)[0],
        lambda q: tilewright.attention(q, k, v, mask),
        lambda q: torch.ops.tilewright.sparse_attention(q, k, v, 0.5, None, 128, 64, None, 0, 0, False)[0],
    ]


@pytest.mark.parametrize("case", range(5))
def test_forward_mode_is_refused(device, case):
    q, k, v = tensors(device)
    call = calls(k, v)[case]
    words = "a forward-mode derivative is wanted"
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(tilewright.Error, match=words):
            call(dual)
        with torch.no_grad(), pytest.raises(tilewright.Error, match=words):
            call(dual)
        assert torch.equal(call(q), call(dual.detach())), "a level alone wants nothing"
    with pytest.raises(tilewright.Error, match=words):
        torch.func.jvp(call, (q,), (torch.ones_like(q),))
    with pytest.raises(tilewright.Error, match=words):
        torch.func.jacfwd(lambda x: call(q * x).float().sum())(torch.ones((), device=device, dtype=q.dtype))


@pytest.mark.parametrize("case", range(5))
def test_gradients_of_torch_func_are_refused(device, case):
    q, k, v = tensors(device)
    call = calls(k, v)[case]
    words = "a gradient of torch.func is wanted"
    with pytest.raises(tilewright.Error, match=words):
        torch.func.grad(lambda q: call(q).float().sum())(q)
    with pytest.raises(tilewright.Error, match=words):
        torch.func.vjp(call, q)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_derivatives_around_and_within_vmap(device):
    q, k, v = tensors(device)
    several = torch.stack([q, k])
    cases = torch.func.vmap(lambda q: tilewright.sparse_attention(q, k, v))
    with pytest.raises(tilewright.Error, match="a forward-mode derivative is wanted"):
        torch.func.jvp(cases, (several,), (several,))
    words = "a gradient of torch.func is wanted"
    with pytest.raises(tilewright.Error, match=words):
        torch.func.grad(lambda q: cases(q).float().sum())(several)
    with pytest.raises(tilewright.Error, match=words):
        torch.func.vmap(torch.func.grad(lambda q: tilewright.sparse_attention(q, k, v).float().sum()))(several)
    with forward_ad.dual_level():
        assert torch.equal(cases(several)[0], tilewright.sparse_attention(q, k, v)), "a level alone wants nothing"


def test_a_selection_is_made_under_every_derivative(device):
    q, k, _ = tensors(device)
    expected = tilewright.block_mask(q, k, top_k=0.4).kv_indices

    def select(q):
        found = tilewright.block_mask(q, k, top_k=0.4).kv_indices
        return q.float().sum(), found

    _, found = torch.func.grad(select, has_aux=True)(q)
    assert torch.equal(found, expected)
    _, _, found = torch.func.jvp(select, (q,), (torch.ones_like(q),), has_aux=True)
    assert torch.equal(found, expected)
    with forward_ad.dual_level():
        _, found = select(forward_ad.make_dual(q, torch.ones_like(q)))
        assert torch.equal(found, expected)


# ---- functions and masks -----------------------------------------------------------------------------------------


def document(lengths=150):
    return tilewright.mask_mod(lambda b, h, q, kv: q // lengths == kv // lengths)


def test_is_causal_does_not_replace_the_function_of_a_mask(device):
    q, k, v = tensors(device)
    words = "write the causal condition into the mask function"
    mask = tilewright.block_mask(q, k, top_k=None, top_p=None, mask_mod=document())
    for call in (tilewright.attention, lambda q, k, v, mask, **more: tilewright.sparse_attention(q, k, v, mask=mask, **more)):
        with pytest.raises(ValueError, match=words):
            call(q, k, v, mask, is_causal=True)
    partial = tilewright.BlockMask(mask.kv_num_blocks, mask.kv_indices, seq_lengths=(300, 300), mask_mod=document())
    with pytest.raises(ValueError, match=words):
        tilewright.attention(q, k, v, partial, is_causal=True)
    whole = tilewright.BlockMask(*mask.lists().values(), seq_lengths=(300, 300))
    with pytest.raises(ValueError, match=words):
        tilewright.attention(q, k, v, whole, is_causal=True)
    causal = tilewright.block_mask(q, k, top_k=0.5, is_causal=True)
    again = tilewright.attention(q, k, v, causal, is_causal=True)
    assert torch.equal(again, tilewright.attention(q, k, v, causal))


def test_a_function_does_not_replace_the_one_of_full_blocks(device):
    q, k, v = tensors(device)
    function = document()
    mask = tilewright.block_mask(q, k, top_k=None, top_p=None, mask_mod=function)
    other = tilewright.mask_mod(lambda b, h, q, kv: abs(q - kv) < 20)
    with pytest.raises(ValueError, match="full blocks, within which no function decides"):
        tilewright.attention(q, k, v, mask, mask_mod=other)
    expected = tilewright.attention(q, k, v, mask)
    assert torch.equal(tilewright.attention(q, k, v, mask, mask_mod=function), expected)
    # Without full blocks it decides about every element.
    map = mask.to_dense()
    partial = tilewright.BlockMask.from_dense(map, seq_lengths=(300, 300), mask_mod=function)
    dense = tilewright.attention(q, k, v, map, mask_mod=other)
    assert torch.equal(tilewright.attention(q, k, v, partial, mask_mod=other), dense)


def test_full_counts_have_the_shape_of_the_counts():
    q, k, v = tensors(shape=(2, 2, 300, 64))
    counts = lambda *shape: torch.full(shape, 5, dtype=torch.int32)  # noqa: E731
    indices = lambda *shape: torch.arange(5, dtype=torch.int32).expand(*shape, 5).contiguous()  # noqa: E731
    with pytest.raises(ValueError, match="needed the same batch and heads in both"):
        tilewright.BlockMask(counts(1, 1, 3), indices(1, 1, 3), counts(2, 2, 3), indices(2, 2, 3), seq_lengths=(300, 300))
    mask = tilewright.BlockMask(
        0 * counts(2, 2, 3), indices(2, 2, 3), counts(1, 1, 3), indices(1, 1, 3), seq_lengths=(300, 300)
    )
    assert mask.sparsity() == 0.0
    everything = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    expected = tilewright.attention(q, k, v, everything)
    assert torch.equal(tilewright.attention(q, k, v, mask), expected)


@pytest.mark.parametrize("order", [(0, 1, 3, 2), (1, 0, 2, 3), (2, 3, 0, 1), (0, 2, 1, 3)])
def test_maps_of_any_strides(device, order):
    q, k, v = tensors(device, (2, 3, 300, 64))
    map = torch.rand((2, 3, 3, 5), generator=torch.Generator().manual_seed(1)) < 0.5
    back = [order.index(i) for i in range(4)]
    strided = map.permute(order).contiguous().permute(back)
    assert not strided.is_contiguous() and torch.equal(strided, map)
    mask = tilewright.BlockMask.from_dense(strided.to(device), seq_lengths=(300, 300))
    assert mask.kv_num_blocks.is_contiguous() and mask.kv_indices.is_contiguous()
    assert mask.q_num_blocks.is_contiguous() and mask.q_indices.is_contiguous()
    assert torch.equal(tilewright.attention(q, k, v, mask), tilewright.attention(q, k, v, map.to(device)))


# ---- export ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("return_mask", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_export_of_a_dynamic_sequence(device, return_mask, strict):
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            found = tilewright.sparse_attention(q, k, v, top_k=0.5, return_mask=return_mask)
            return found[0] if return_mask else found

    seq = torch.export.Dim("seq", min=200, max=5000)
    shapes = ({2: seq},) * 3
    program = torch.export.export(Layer(), tuple(tensors(device)), dynamic_shapes=shapes, strict=strict).module()
    for length in (411, 256, 1000):
        inputs = tensors(device, (1, 2, length, 64))
        assert torch.equal(program(*inputs), Layer()(*inputs))


# ---- tensors and options -----------------------------------------------------------------------------------------


def test_frameworks_do_not_mix():
    q, k, v = tensors()
    a, b, c = (tensor.half().numpy() for tensor in (q, k, v))
    with pytest.raises(TypeError, match="k is of type torch.Tensor, needed a numpy.ndarray as q is"):
        tilewright.sparse_attention(a, k.half(), v.half())
    with pytest.raises(TypeError, match="k is of type numpy.ndarray, needed a torch.Tensor as q is"):
        tilewright._native.sparse_attention(q, b, c, 0.1, None, 128, 64, None, 0, 0, False, False, False)
    with pytest.raises(TypeError, match="k is of type ndarray, needed a torch.Tensor as q is"):
        tilewright.sparse_attention(q, b, c)
    for first, other in ((q, b), (a, k)):
        with pytest.raises(TypeError, match="k is of type"):
            tilewright.block_mask(first, other)
    map = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    with pytest.raises(TypeError, match="kv_num_blocks is of type numpy.ndarray, needed a torch.Tensor as q is"):
        tilewright.attention(q, k, v, map.numpy())
    with pytest.raises(TypeError, match="kv_num_blocks is of type torch.Tensor, needed a numpy.ndarray as q is"):
        tilewright.attention(a, b, c, map)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="kv_num_blocks is of type ndarray"):
        tilewright.attention(q, k, v, map.numpy())
    with pytest.raises(TypeError, match="q is of type list, needed"):
        tilewright.attention([1], k, v, map)
    with pytest.raises(TypeError, match="q is of type list, needed"):
        tilewright.block_mask([1], k)


@pytest.mark.parametrize("call", ["sparse_attention", "block_mask", "attention", "module", "attribute", "grid"])
@pytest.mark.parametrize(
    ("block_size", "kind", "words"),
    [
        (128, TypeError, r"block_size is 128, which is no pair of queries and keys, needed one of \(128, 64\)"),
        ((-1, 64), ValueError, r"sparse blocks of \(-1, 64\) \(queries, keys\), needed one of \(128, 64\)"),
        ((128,), ValueError, r"sparse blocks of \(128,\) \(queries, keys\), needed one of"),
        (None, TypeError, "block_size is None, which is no pair"),
    ],
)
def test_block_sizes(call, block_size, kind, words):
    q, k, v = tensors()

    def attribute():
        module = tilewright.SparseAttention()
        module.block_size = block_size
        module(q, k, v)

    made = {
        "sparse_attention": lambda: tilewright.sparse_attention(q, k, v, block_size=block_size),
        "block_mask": lambda: tilewright.block_mask(q, k, block_size=block_size),
        "attention": lambda: tilewright.attention(q, k, v, torch.ones(1, 1, 3, 5).bool(), block_size=block_size),
        "module": lambda: tilewright.SparseAttention(block_size=block_size),
        "attribute": attribute,
        "grid": lambda: tilewright.TokenGrid((4, 4, 4), block_size=block_size),
    }
    with pytest.raises(kind, match=words):
        made[call]()


def test_lists_of_block_sizes_are_pairs():
    q, k, v = tensors()
    assert torch.equal(
        tilewright.sparse_attention(q, k, v, block_size=[64, 64]), tilewright.sparse_attention(q, k, v, block_size=(64, 64))
    )


def test_sparse_layouts(device):
    q, k, v = tensors(device)
    words = r"needed torch.strided: make it dense with `.to_dense\(\)`"
    with pytest.raises(ValueError, match="q has the layout torch.sparse_coo, " + words):
        tilewright.sparse_attention(q.to_sparse(), k, v)
    with pytest.raises(ValueError, match="v has the layout torch.sparse_coo, " + words):
        tilewright.sparse_attention(q, k, v.to_sparse())
    with pytest.raises(ValueError, match="k has the layout torch.sparse_coo, " + words):
        tilewright.block_mask(q, k.to_sparse())
    with torch.autocast(device, dtype=torch.bfloat16), pytest.raises(ValueError, match="q has the layout torch.sparse_coo"):
        tilewright.sparse_attention(q.to_sparse(), k, v)


def test_bytes_in_the_other_order():
    a, b, c = (np.random.default_rng(i).standard_normal((1, 2, 300, 64)).astype(np.float16) for i in range(3))
    other = a.dtype.newbyteorder("S")
    with pytest.raises(TypeError, match="q has dtype .f2, whose bytes are in the other order"):
        tilewright.sparse_attention(a.astype(other), b, c)
    with pytest.raises(TypeError, match="v has dtype .f2, whose bytes are in the other order"):
        tilewright.sparse_attention(a, b, c.astype(other))
    same = a.astype(other).astype(other.newbyteorder("="))
    assert np.array_equal(tilewright.sparse_attention(same, b, c), tilewright.sparse_attention(a, b, c))
    mask = tilewright.block_mask(a, b)
    lists = (mask.kv_num_blocks, mask.kv_indices.astype(mask.kv_indices.dtype.newbyteorder("S")))
    swapped = tilewright.BlockMask(*lists, seq_lengths=(300, 300))
    with pytest.raises(TypeError, match="kv_indices has dtype .i4, whose bytes are in the other order"):
        tilewright.attention(a, b, c, swapped)


def test_a_view_of_more_than_memory_holds():
    """One element, expanded: a copy for the CPU would end the process."""
    q, _, _ = tensors(shape=(1, 1, 300, 64))
    wide = torch.zeros(1).bfloat16().expand(1, 1, 2**40, 64)
    arrays = q.half().numpy(), np.broadcast_to(np.zeros(1, np.float16), wide.shape)
    for few, many in ((q, wide), arrays):
        with pytest.raises(ValueError, match=r"shape \[1, 1, 1099511627776, 64\] of b?f16 does not fit into memory"):
            tilewright.sparse_attention(few, many, many)


# ---- block masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seq_lengths", "kind", "words"),
    [
        (300, TypeError, "seq_lengths is 300, needed a pair"),
        ((300,), TypeError, r"seq_lengths is \(300,\), needed a pair"),
        ("12", TypeError, "seq_lengths is '12', needed a pair"),
        ((300.0, 300), TypeError, "seq_lengths has 300.0, of type float, needed whole numbers"),
        ((300, "300"), TypeError, "seq_lengths has '300', of type str, needed whole numbers"),
        ((-5, 300), ValueError, "seq_lengths has -5, needed numbers of tokens of at least 0"),
    ],
)
def test_lengths_of_masks(seq_lengths, kind, words):
    map = torch.ones(1, 1, 3, 5).bool()
    lists = torch.ones(1, 1, 3).int(), torch.zeros(1, 1, 3, 5).int()
    for make in (
        lambda: tilewright.BlockMask.from_dense(map, seq_lengths=seq_lengths),
        lambda: tilewright.BlockMask(*lists, seq_lengths=seq_lengths),
    ):
        with pytest.raises(kind, match=words):
            make()


def test_maps_are_bool():
    """Another number than 1 would count as so many blocks, or as none."""
    map = torch.tensor([[[[1, 0, 2, 0, 256]] * 3]])
    for wrong in (map, map.float(), map.to(torch.uint8), map.numpy(), map.double().numpy()):
        with pytest.raises(TypeError, match="the block map has dtype .*, needed bool: compare it"):
            tilewright.BlockMask.from_dense(wrong, seq_lengths=(300, 300))
    mask = tilewright.BlockMask.from_dense(map > 0, seq_lengths=(300, 300))
    assert mask.row_counts().tolist() == [[[3] * 3]] and torch.equal(mask.to_dense(), map > 0)


def test_lists_and_maps_are_arrays():
    map, counts = [[[[True] * 5] * 3]], [[[1] * 3]]
    with pytest.raises(TypeError, match="the block map is of type list, needed a torch.Tensor or a numpy array"):
        tilewright.BlockMask.from_dense(map, seq_lengths=(300, 300))
    with pytest.raises(TypeError, match="kv_num_blocks is of type list, needed a torch.Tensor or a numpy array"):
        tilewright.BlockMask(counts, map, seq_lengths=(300, 300))
    with pytest.raises(TypeError, match="full_kv_indices is of type list, needed a torch.Tensor or a numpy array"):
        lists = torch.ones(1, 1, 3).int(), torch.zeros(1, 1, 3, 5).int()
        tilewright.BlockMask(*lists, lists[0], map, seq_lengths=(300, 300))
    of_arrays = tilewright.BlockMask.from_dense(np.array(map), seq_lengths=(300, 300))
    with pytest.raises(TypeError, match="the mask's lists are of type ndarray, needed torch.Tensor to move them"):
        of_arrays.to("cpu")


# ---- token grids -------------------------------------------------------------------------------------------------


def test_tangents_follow_a_regrouped_tensor(device):
    grid = tilewright.TokenGrid((4, 6, 5))
    x = torch.randn(2, len(grid), 8, device=device)
    tangent = torch.randn_like(x)
    expected = grid.regroup(tangent, dim=1)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(grid.regroup(forward_ad.make_dual(x, tangent), dim=1))
        assert torch.equal(found.tangent, expected)
    assert torch.equal(torch.func.jvp(lambda x: grid.regroup(x, dim=1), (x,), (tangent,))[1], expected)
    found = torch.func.vmap(lambda x: grid.regroup(x, dim=0))(x)
    assert torch.equal(found, grid.regroup(x, dim=1))


@pytest.mark.parametrize("full", [False, True])
def test_what_lists_hold_is_checked_on_the_cpu(full):
    q, k, v = tensors()
    counts = torch.full((1, 1, 3), 5, dtype=torch.int32)
    indices = torch.arange(5, dtype=torch.int32).expand(1, 1, 3, 5).contiguous()

    def attend(counts, indices):
        lists = (0 * counts, indices, counts, indices) if full else (counts, indices)
        tilewright.attention(q, k, v, tilewright.BlockMask(*lists, seq_lengths=(300, 300)))

    attend(counts, indices)
    for bad in ((counts + 1, indices), (counts, indices + 1), (counts, indices.clamp(max=3))):
        with pytest.raises(ValueError):
            attend(*bad)


# ---- masks of FlexAttention that were sliced ---------------------------------------------------------------------


def flex_mask(function, blocks=(2, 2), device="cpu"):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    return flex.create_block_mask(function, *blocks, 300, 300, device=device, BLOCK_SIZE=128)


def causal(b, h, q, kv):
    return q >= kv


@pytest.mark.parametrize("index", [slice(1, 2), (slice(0, 1), slice(0, 1)), (slice(None), slice(1, 2))])
def test_a_slice_that_lost_its_function(device, index):
    whole = flex_mask(causal, device=device)
    sliced = whole[index]
    batch, heads = sliced.kv_num_blocks.shape[:2]
    q, k, v = tensors(device, (batch, heads, 300, 64))
    with pytest.raises(ValueError, match="the BlockMask was sliced, which resets its mask_mod, and its kv_num_blocks count partial blocks"):
        tilewright.attention(q, k, v, sliced)
    sliced.mask_mod = whole.mask_mod
    found = tilewright.attention(q, k, v, sliced)
    exact, _ = attend(*(x.float().cpu().numpy() for x in (q, k, v)), np.tri(300, dtype=bool))
    assert distance(found.float().cpu(), exact) < 4e-3  # the bound of bfloat16 in `test_ways.py`
    if device == "cpu":  # on a GPU partial and full blocks come in another order, and are summed in it
        assert torch.equal(found, tilewright.sparse_attention(q, k, v, top_k=1.0, block_size=(128, 128), is_causal=True))


def test_a_slice_of_full_blocks_needs_no_function(device):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    blocks = lambda b, h, q, kv: q // 128 >= kv // 128  # noqa: E731
    whole = flex.create_block_mask(blocks, 2, 2, 256, 256, device=device, BLOCK_SIZE=128)
    q, k, v = tensors(device, (1, 2, 256, 64))
    map = torch.tensor([[1, 0], [1, 1]], device=device).bool().expand(1, 1, 2, 2)
    expected = tilewright.attention(q, k, v, map, block_size=(128, 128))
    assert torch.equal(tilewright.attention(q, k, v, whole[1:2]), expected)


def test_a_slice_of_query_blocks_keeps_the_seq_lengths_of_the_whole(device):
    whole = flex_mask(causal, device=device)
    sliced = whole[:, :, 1:2]
    sliced.mask_mod = whole.mask_mod
    q, k, v = tensors(device, (2, 2, 128, 64))
    words = r"kv_num_blocks has shape \(2, 2, 1\), needed \[batch, heads, 3\]: .* the 300 queries of seq_lengths. Of a part"
    with pytest.raises(ValueError, match=words):
        tilewright.attention(q, k, v, sliced)


# ---- operands of several devices, with and without elements ------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2, 300, 64), (1, 2, 0, 64), (0, 2, 300, 64)])
def test_operands_on_several_devices(device, shape):
    """"meta" stands for another device: PyTorch gives a call with one such tensor to the fake kernels."""
    q, k, v = tensors(device, shape)
    mask = tilewright.block_mask(q, k)
    lists = [mask.kv_num_blocks, mask.kv_indices]
    ops, options = torch.ops.tilewright, (128, 64, None, 0, 0, False)
    out, lse = tilewright.attention(q, k, v, mask, return_lse=True)
    calls = {
        "sparse_attention": ([q, k, v], lambda q, k, v: ops.sparse_attention(q, k, v, 0.5, 0.5, *options)),
        "block_mask": ([q, k], lambda q, k: ops.block_mask(q, k, 0.5, 0.5, 128, 64, None, 0, False)),
        "attention": ([q, k, v, *lists], lambda *x: ops.attention(*x, None, None, *options)),
        "backward": ([out, lse, q, k, v, out, lse, *lists], lambda *x: ops.attention_backward(*x, None, None, *options)),
        "direct": ([q, k, v], tilewright.sparse_attention),
        "with a gradient": ([q.clone().requires_grad_(), k, v], tilewright.sparse_attention),
    }
    for name, (operands, call) in calls.items():
        call(*operands)
        for i, operand in enumerate(operands):
            elsewhere = [*operands[:i], operand.detach().to("meta"), *operands[i + 1 :]]
            with pytest.raises(ValueError, match="is on"):
                call(*elsewhere)
                pytest.fail(f"{name} took operand {i}")


@pytest.mark.parametrize("shape", [(1, 2, 5, 7), (1, 2, 0, 7), (1, 2, 5, 0), (0, 2, 5, 7), (1, 0, 5, 7)])
def test_rows_of_another_shape_or_dtype(device, shape):
    """What a backward is given besides q, k and v is checked whether or not there are elements."""
    batch, heads, seq_q, seq_kv = shape
    zeros = lambda *shape, dtype=torch.float16: torch.zeros(shape, dtype=dtype, device=device)  # noqa: E731
    rows, columns = -(-seq_q // 128), -(-seq_kv // 64)
    operands = {
        "d_out": zeros(batch, heads, seq_q, 24),
        "d_lse": zeros(batch, heads, seq_q, dtype=torch.float32),
        "q": zeros(batch, heads, seq_q, 64),
        "k": zeros(batch, heads, seq_kv, 64),
        "v": zeros(batch, heads, seq_kv, 24),
        "out": zeros(batch, heads, seq_q, 24),
        "lse": zeros(batch, heads, seq_q, dtype=torch.float32),
        "kv_num_blocks": zeros(1, 1, rows, dtype=torch.int32),
        "kv_indices": zeros(1, 1, rows, max(columns, 1), dtype=torch.int32),
    }
    rest = (None, None, 128, 64, None, 0, 0, False)
    calls = {
        "backward": (list(operands), lambda *x: tilewright._native.attention_backward(*x, *rest)),
        "backward's operator": (list(operands), lambda *x: torch.ops.tilewright.attention_backward(*x, *rest)),
        "attention": (["q", "k", "v", "kv_num_blocks", "kv_indices"], lambda *x: tilewright._native.attention(*x, *rest, False)),
        "attention's operator": (["q", "k", "v", "kv_num_blocks", "kv_indices"], lambda *x: torch.ops.tilewright.attention(*x, *rest)),
    }
    wider = lambda x: torch.cat([x, x[..., -8:] if x.shape[-1] > 8 else x.new_zeros(*x.shape[:-1], 8)], -1)  # noqa: E731
    changes = {
        "one more dimension": lambda x: x[None],
        "another batch": lambda x: x.new_zeros(3, *x.shape[1:]),
        "a longer last dimension": wider,
        "float64": lambda x: x.double(),
        "another dtype of as many bits": lambda x: x.bfloat16() if x.dtype == torch.float16 else x.view(torch.int32) if x.is_floating_point() else x.float(),
    }
    for call, (names, work) in calls.items():
        work(*(operands[name] for name in names))
        for name in names:
            for change, make in changes.items():
                # A list may be wider than there are key blocks, and a forward's output is as wide as v.
                is_free = name == "kv_indices" or (name == "v" and call.startswith("attention"))
                if is_free and change == "a longer last dimension":
                    continue
                with pytest.raises((ValueError, TypeError)):
                    work(*(make(operands[other]) if other == name else operands[other] for other in names))
                    pytest.fail(f"{call} took {name} with {change}")


# ---- options of another type -------------------------------------------------------------------------------------


def ways(**options):
    """The calls that take an option, each with only those it has."""
    q, k, v = tensors()
    mask = tilewright.block_mask(q, k)
    selection = {name: value for name, value in options.items() if name not in ("return_lse", "return_mask")}
    kept = {name: value for name, value in options.items() if name != "return_mask"}
    found = [lambda: tilewright.sparse_attention(q, k, v, **options)]
    found += [lambda: tilewright.sparse_attention(*(x.numpy() for x in (q.half(), k.half(), v.half())), **options)]
    if kept:
        found += [lambda: tilewright.attention(q, k, v, mask, **kept)]
    if selection:
        found += [lambda: tilewright.block_mask(q, k, **selection), lambda: tilewright.SparseAttention(**selection)]
    return found


@pytest.mark.parametrize("name", ["is_causal", "enable_gqa", "return_lse", "return_mask"])
@pytest.mark.parametrize("value", ["no", "x", 0, 1, None, []])
def test_flags_are_bools(name, value):
    for call in ways(**{name: value}):
        with pytest.raises(TypeError, match=f"{name} is .*needed True or False"):
            call()


@pytest.mark.parametrize("name", ["is_causal", "enable_gqa", "return_lse"])
def test_bools_of_numpy_are_flags(name):
    q, k, v = tensors()
    for value in (np.bool_(True), np.bool_(False)):
        found, expected = (tilewright.sparse_attention(q, k, v, **{name: flag}) for flag in (value, bool(value)))
        assert type(found) is type(expected)
        pairs = zip(found, expected) if isinstance(found, tuple) else [(found, expected)]
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("block_size", [(128.0, 64), (128, 64.0), ("128", 64), (np.float64(64), 64)])
def test_sizes_of_blocks_are_whole_numbers(block_size):
    q, k, v = tensors()
    mask = tilewright.block_mask(q, k)
    calls = [
        lambda: tilewright.sparse_attention(q, k, v, block_size=block_size),
        lambda: tilewright.sparse_attention(q, k, v, block_size=block_size, return_mask=True),
        lambda: tilewright.block_mask(q, k, block_size=block_size),
        lambda: tilewright.attention(q, k, v, mask.to_dense(), block_size=block_size),
        lambda: tilewright.BlockMask(mask.kv_num_blocks, mask.kv_indices, BLOCK_SIZE=block_size, seq_lengths=(300, 300)),
        lambda: tilewright.TokenGrid((4, 8, 8), block_size=block_size),
        lambda: tilewright.SparseAttention(block_size=block_size),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="block_size is .*no whole number, needed one of"):
            call()


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout):
    q, k, v = (torch.nested.nested_tensor([x[0, :, :8].transpose(0, 1), x[0, :, :5].transpose(0, 1)], layout=layout) for x in tensors())
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    plain = tensors()
    mask = tilewright.block_mask(plain[0], plain[1])
    calls = {
        "q": [
            lambda: tilewright.sparse_attention(q, k, v),
            lambda: tilewright.block_mask(q, k),
            lambda: tilewright.attention(q, k, v, mask),
        ],
        "k": [lambda: tilewright.sparse_attention(plain[0], k, v), lambda: tilewright.attention(plain[0], k, v, mask)],
        "v": [lambda: tilewright.sparse_attention(*plain[:2], v), lambda: tilewright.attention(*plain[:2], v, mask)],
    }
    for name, made in calls.items():
        for call in made:
            with pytest.raises(TypeError, match=f"{name} is a nested tensor, needed one of a single shape"):
                call()


# ---- a module is refused when it is made -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        *({name: value} for name in ("top_k", "top_p") for value in (5, 0, -0.1, float("nan"), "0.1")),
        *({"scale": value} for value in (float("nan"), float("inf"), "1")),
        {"layout": "SBHD"},
        {"score_mod": lambda s, b, h, q, kv: s},
        {"mask_mod": lambda b, h, q, kv: q >= kv},
        {"is_causal": True, "mask_mod": tilewright.mask_mod(lambda b, h, q, kv: q >= kv)},
    ],
    ids=lambda options: " ".join(f"{name}={value!r}" if isinstance(value, (int, float, str)) else name for name, value in options.items()),
)
def test_a_module_refuses_what_its_calls_would(options):
    q, k, v = tensors()
    with pytest.raises((TypeError, ValueError)) as called:
        tilewright.sparse_attention(q, k, v, **options)
    with pytest.raises(type(called.value)) as made:
        tilewright.SparseAttention(**options)
    # Rust and Python write some numbers otherwise.
    assert str(made.value).lower().replace("0.0", "0") == str(called.value).lower().replace("0.0", "0")


def test_a_module_shows_its_options():
    window = tilewright.mask_mod(lambda b, h, q, kv: q - kv < 9)
    module = tilewright.SparseAttention(top_k=0.1, scale=0.5, enable_gqa=True, layout="BSHD", mask_mod=window)
    assert repr(module) == (
        "SparseAttention(top_k=0.1, top_p=0.2, block_size=(128, 64), scale=0.5, is_causal=False, enable_gqa=True, layout='BSHD', "
        f"score_mod=None, mask_mod={window!r}, tail=None, scores=None)"
    )
