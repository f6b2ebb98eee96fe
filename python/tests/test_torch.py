"""Tensors of PyTorch, on the CPU executor and on a GPU: the same tests for both."""

import os
import shutil

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import tilewright  # noqa: E402

F = torch.nn.functional

#: What PyTorch's inductor compiles its launchers with.
COMPILER = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")


def tensors(device, shape, kv_shape=None, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [shape, kv_shape or shape, kv_shape or shape]
    return [torch.randn(s, generator=generator).to(dtype).to(device) for s in shapes]


def expanded(mask):
    """The elements that a block mask keeps, `[b, h, seq_q, seq_kv]`."""
    map = mask.to_dense()
    map = map.repeat_interleave(mask.BLOCK_SIZE[0], dim=-2)[..., : mask.seq_lengths[0], :]
    return map.repeat_interleave(mask.BLOCK_SIZE[1], dim=-1)[..., : mask.seq_lengths[1]]


def dense(q, k, v, keep=None, scale=None):
    """SDPA in float64, on the CPU; rows with nothing are 0."""
    q, k, v = (x.double().cpu() for x in (q, k, v))
    keep = None if keep is None else keep.cpu()
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out if keep is None else torch.where(keep.any(-1, keepdim=True), out, 0)


def check(found, expected, bound=1e-2):
    found = found.double().cpu()
    assert found.shape == expected.shape
    apart = (found - expected).norm() / expected.norm().clamp(min=1e-30)
    assert apart < bound, f"relative error {apart:.2e}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 72, 128])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "seq_q", "seq_kv", "block_size"),
    [
        (3, 3, 700, 700, (128, 64)),  # a short last block
        (4, 2, 257, 1030, (128, 128)),  # grouped heads, other lengths
        (2, 1, 64, 64, (64, 64)),  # one block
        (2, 2, 1, 333, (64, 128)),  # one query
    ],
)
def test_against_sdpa(device, dtype, dim, heads, kv_heads, seq_q, seq_kv, block_size):
    q, k, v = tensors(device, (2, heads, seq_q, dim), (2, kv_heads, seq_kv, dim), dtype)
    out, lse, mask = tilewright.sparse_attention(
        q, k, v, top_k=0.3, top_p=0.4, block_size=block_size, enable_gqa=True, return_lse=True, return_mask=True
    )
    keep = expanded(mask)
    check(out, dense(q, k, v, keep))
    group = heads // kv_heads
    scores = q.double() @ k.double().repeat_interleave(group, dim=1).mT * dim**-0.5
    expected = scores.masked_fill(~keep, -torch.inf).logsumexp(-1)
    assert (lse.double() - expected).abs().max() < 2e-2
    assert out.dtype == dtype and lse.dtype == torch.float32 and out.device == q.device
    everything = tilewright.sparse_attention(q, k, v, top_k=1.0, block_size=block_size, enable_gqa=True)
    check(everything, dense(q, k, v))


@pytest.mark.parametrize(("dim", "value_dim"), [(192, 128), (64, 72)])
@pytest.mark.parametrize("layout", ["BHSD", "BSHD"])
def test_values_of_another_width(device, dim, value_dim, layout):
    # Multi-head latent attention: 192 columns of queries and keys, 128 of values.
    generator = torch.Generator().manual_seed(5)
    shapes = [(2, 4, 300, dim), (2, 2, 500, dim), (2, 2, 500, value_dim)]
    q, k, v = (torch.randn(shape, generator=generator).bfloat16().to(device).requires_grad_() for shape in shapes)
    given = (q, k, v) if layout == "BHSD" else [x.transpose(1, 2) for x in (q, k, v)]
    options = {"top_k": 0.3, "enable_gqa": True, "layout": layout}
    out, mask = tilewright.sparse_attention(*given, **options, return_mask=True)
    out = out if layout == "BHSD" else out.transpose(1, 2)
    keep = expanded(mask).cpu()
    check(out.detach(), dense(q, k, v, keep).detach())
    with torch.no_grad():
        alone = tilewright.sparse_attention(*given, **options)
        assert torch.equal(alone if layout == "BHSD" else alone.transpose(1, 2), out)
        assert torch.equal(tilewright.attention(q, k, v, mask, enable_gqa=True), out)
    d_out = torch.randn(out.shape, generator=generator).bfloat16().to(device)
    out.backward(d_out)
    leaves = [x.detach().double().cpu().requires_grad_() for x in (q, k, v)]
    repeated = [leaves[0], *(x.repeat_interleave(2, dim=1) for x in leaves[1:])]
    exact = F.scaled_dot_product_attention(*repeated, attn_mask=keep)
    exact.backward(d_out.double().cpu())
    for found, expected in zip((q, k, v), leaves):
        check(found.grad, expected.grad)
    with torch._subclasses.FakeTensorMode():
        shapes = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in (q, k, v)]
        assert tilewright.sparse_attention(*shapes, top_k=0.3, enable_gqa=True).shape == out.shape
    with pytest.raises(ValueError, match="seq_kv"):
        tilewright.sparse_attention(q, k, v[:, :, :400], top_k=0.3, enable_gqa=True)


def test_the_selection_is_the_rule(device):
    from oracle import select

    q, k, _ = tensors(device, (1, 4, 2000, 64), dtype=torch.float16)
    mask = tilewright.block_mask(q, k, top_k=0.1, top_p=0.3)
    expected = select(q.cpu(), k.cpu(), (128, 64), 0.1, 0.3)
    different = (mask.to_dense().cpu().numpy() != expected).mean()
    # A row whose mass lands on top_p within rounding keeps a block more or less.
    assert different <= 0.002


def test_strides_are_taken_as_they_are(device):
    q, k, v = tensors(device, (2, 300, 4, 64))
    out = tilewright.sparse_attention(q, k, v, top_k=0.3, layout="BSHD")
    assert out.shape == q.shape and out.is_contiguous()
    views = [x.transpose(1, 2) for x in (q, k, v)]
    same = tilewright.sparse_attention(*views, top_k=0.3)
    assert same.stride() == views[0].stride(), "out lies in memory as q does"
    assert torch.equal(same.transpose(1, 2), out)
    copies = [x.contiguous() for x in views]
    assert torch.equal(tilewright.sparse_attention(*copies, top_k=0.3), same)
    packed = torch.stack([q, k, v], dim=2)  # [b, s, 3, h, d], as one projection makes it
    parts = packed.unbind(dim=2)
    assert torch.equal(tilewright.sparse_attention(*parts, top_k=0.3, layout="BSHD"), out)
    wide = torch.randn(2, 4, 300, 128, device=device).bfloat16()
    wide[..., :64] = copies[1]
    assert torch.equal(tilewright.sparse_attention(copies[0], wide[..., :64], copies[2], top_k=0.3), same)


def test_causal(device):
    q, k, v = tensors(device, (1, 2, 1000, 64))
    everything = tilewright.sparse_attention(q, k, v, top_k=1.0, is_causal=True)
    keep = torch.ones(1000, 1000, dtype=torch.bool).tril()
    check(everything, dense(q, k, v, keep))
    out, mask = tilewright.sparse_attention(q, k, v, top_k=0.3, is_causal=True, return_mask=True)
    check(out, dense(q, k, v, expanded(mask).cpu() & keep))
    check(tilewright.attention(q, k, v, mask), out.double().cpu(), 1e-6)
    check(tilewright.sparse_attention(q, k[:, :, :300], v[:, :, :300], top_k=1.0, is_causal=True), dense(q, k[:, :, :300], v[:, :, :300], keep[:, :300]))


@pytest.mark.parametrize("shared", [False, True])
def test_masks_of_ones_own(device, shared):
    q, k, v = tensors(device, (2, 3, 500, 64))
    shape = (1, 1, 4, 8) if shared else (2, 3, 4, 8)
    map = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4
    map[..., 2, :] = False
    map = map.to(device)
    out, lse = tilewright.attention(q, k, v, map, return_lse=True)
    mask = tilewright.BlockMask.from_dense(map, seq_lengths=(500, 500))
    check(out, dense(q, k, v, expanded(mask).expand(2, 3, -1, -1)))
    assert (out[:, :, 256:384] == 0).all() and (lse[:, :, 256:384] == -torch.inf).all()
    assert torch.equal(mask.to_dense(), map)
    assert mask.kept_blocks() == int(map.sum())
    assert torch.equal(tilewright.sparse_attention(q, k, v, mask=mask), out)
    backwards = tilewright.BlockMask(
        mask.kv_num_blocks,
        torch.where(
            torch.arange(8, device=device) < mask.kv_num_blocks[..., None],
            mask.kv_indices.gather(-1, (mask.kv_num_blocks[..., None].long() - 1 - torch.arange(8, device=device)).clamp(min=0)),
            0,
        ).int(),
        seq_lengths=(500, 500),
    )
    check(tilewright.attention(q, k, v, backwards), out.double().cpu(), 1e-2)


def test_a_mask_of_flex_attention(device):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    q, k, v = tensors(device, (2, 3, 512, 64))
    # Whole blocks alone: nothing is left for its mask_mod to decide.
    blocks = flex.create_block_mask(
        lambda b, h, q, kv: (q // 128 + h + b) % 2 == (kv // 64) % 2, 2, 3, 512, 512, device=device, BLOCK_SIZE=(128, 64)
    )
    assert int(blocks.kv_num_blocks.sum()) == 0
    out = tilewright.attention(q, k, v, blocks)
    index = torch.arange(512)
    keep = ((index[:, None] // 128 + torch.arange(3)[:, None, None] + torch.arange(2)[:, None, None, None]) % 2) == (
        index // 64
    ) % 2
    check(out, dense(q, k, v, keep))
    # Ours, through theirs, and back.
    mask = tilewright.block_mask(q, k, top_k=0.3)
    assert torch.equal(tilewright.attention(q, k, v, mask.to_flex()), tilewright.attention(q, k, v, mask))


def test_a_mask_of_flex_attention_with_partial_blocks(device):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    q, k, v = tensors(device, (1, 2, 500, 64))
    keep = torch.ones(500, 500, dtype=torch.bool).tril()

    def causal(b, h, q, kv):
        return q >= kv

    blocks = flex.create_block_mask(causal, 1, 1, 500, 500, device=device, BLOCK_SIZE=128)
    assert int(blocks.kv_num_blocks.sum()) > 0
    check(tilewright.attention(q, k, v, blocks), dense(q, k, v, keep))
    lists = (blocks.kv_num_blocks, blocks.kv_indices, blocks.full_kv_num_blocks, blocks.full_kv_indices)
    ours = tilewright.BlockMask(*lists, BLOCK_SIZE=128, seq_lengths=(500, 500), mask_mod="causal")
    check(tilewright.attention(q, k, v, ours), dense(q, k, v, keep))

    def unknown(b, h, q, kv):
        return kv in {q, q - 1}

    blocks.mask_mod = unknown
    with pytest.raises(tilewright.TranslationError, match="unknown"):
        tilewright.attention(q, k, v, blocks)
    whole = flex.create_block_mask(lambda b, h, q, kv: q // 128 >= kv // 128, 1, 1, 512, 512, device=device, BLOCK_SIZE=128)
    whole.mask_mod = unknown
    x, y, z = tensors(device, (1, 2, 512, 64))
    index = torch.arange(512) // 128
    check(tilewright.attention(x, y, z, whole), dense(x, y, z, index[:, None] >= index))


def test_a_mask_of_flex_attention_with_other_blocks(device):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    q, k, v = tensors(device, (1, 2, 512, 64))
    blocks = flex.create_block_mask(lambda b, h, q, kv: q >= kv, 1, 1, 512, 512, device=device, BLOCK_SIZE=256)
    with pytest.raises(ValueError, match=r"sparse blocks of \(256, 256\) \(queries, keys\), needed one of"):
        tilewright.attention(q, k, v, blocks)


def test_no_keys_and_no_queries(device):
    q, _, _ = tensors(device, (1, 2, 5, 64))
    none = q[:, :, :0]
    out, lse = tilewright.sparse_attention(q, none, none, return_lse=True)
    assert (out == 0).all() and (lse == -torch.inf).all()
    assert tilewright.sparse_attention(none, q, q).shape == (1, 2, 0, 64)
    assert tilewright.block_mask(q, none).kept_blocks() == 0


# ---- PyTorch's machinery -----------------------------------------------------------------------------------------


def operator_arguments(device):
    q, k, v = tensors(device, (1, 4, 300, 64), (1, 2, 200, 64))
    mask = tilewright.block_mask(q, k, top_k=0.5, enable_gqa=True)
    causal = tilewright.block_mask(q, k, top_k=0.5, enable_gqa=True, is_causal=True)
    ops = torch.ops.tilewright
    return [
        (ops.sparse_attention, (q, k, v, 0.3, 0.2, 128, 64, None, 0, 0, True)),
        (ops.sparse_attention, (q.transpose(1, 2).contiguous().transpose(1, 2), k, v, None, 0.2, 64, 64, 0.1, 0, 1, True)),
        (ops.block_mask, (q, k, 0.3, 0.2, 128, 64, None, 0, True)),
        (ops.block_mask, (q, k, 0.3, None, 128, 64, None, 1, True)),
        (ops.attention, (q, k, v, mask.kv_num_blocks, mask.kv_indices, None, None, 128, 64, None, 0, 0, True)),
        (
            ops.attention,
            (
                q,
                k,
                v,
                causal.kv_num_blocks,
                causal.kv_indices,
                causal.full_kv_num_blocks,
                causal.full_kv_indices,
                128,
                64,
                None,
                0,
                1,
                True,
            ),
        ),
    ]


@pytest.mark.parametrize("case", range(6))
def test_opcheck(device, case):
    operator, arguments = operator_arguments(device)[case]
    torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_without_a_break(device, backend):
    if backend == "inductor" and (device == "cpu" or not COMPILER):
        pytest.skip("inductor needs a GPU and a C compiler; the graph is the same")

    def layer(q, k, v, top_k):
        out, lse, mask = tilewright.sparse_attention(
            q * 2, k, v, top_k=top_k, layout="BSHD", return_lse=True, return_mask=True
        )
        again = tilewright.attention(q * 2, k, v, mask, layout="BSHD")
        plain = tilewright.sparse_attention(q * 2, k, v, top_k=top_k, is_causal=True, layout="BSHD")
        return out + again, lse, plain + 1

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for seed, seq in ((0, 300), (1, 300), (2, 500)):
        q, k, v = tensors(device, (2, seq, 3, 64), seed=seed)
        for found, expected in zip(compiled(q, k, v, 0.4), layer(q, k, v, 0.4)):
            check(found, expected.double().cpu(), 1e-2)


def test_compile_with_functions(device):
    q, k, v = tensors(device, (1, 2, 300, 64))
    bias = tilewright.score_mod(lambda score, b, h, q, kv: score - 0.01 * abs(q - kv))
    window = tilewright.mask_mod(lambda b, h, q, kv: abs(q - kv) < 100)

    def call(q, k, v):
        return tilewright.sparse_attention(q, k, v, top_k=0.6, score_mod=bias, mask_mod=window)

    expected = call(q, k, v)
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(q, k, v), expected)
    assert not torch.equal(expected, tilewright.sparse_attention(q, k, v, top_k=0.6, mask_mod=window))
    index = torch.arange(300)
    apart = (index[:, None] - index).abs()
    everything = tilewright.sparse_attention(q, k, v, top_k=1.0, score_mod=bias, mask_mod=window)
    bias_map = torch.where(apart < 100, -0.01 * apart.double(), -torch.inf)
    check(everything, F.scaled_dot_product_attention(*(x.double().cpu() for x in (q, k, v)), attn_mask=bias_map))


def test_compile_of_a_mask_of_flex_attention(device):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    q, k, v = tensors(device, (1, 2, 512, 64))
    mask = tilewright.block_mask(q, k, top_k=0.3).to_flex()
    assert mask.mask_mod is flex.noop_mask
    compiled = torch.compile(lambda q, k, v: tilewright.attention(q, k, v, mask), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v), tilewright.attention(q, k, v, mask))


def test_module(device):
    q, k, v = tensors(device, (1, 300, 2, 64))
    module = tilewright.SparseAttention(top_k=0.4, layout="BSHD").to(device)
    out = module(q, k, v)
    assert torch.equal(out, tilewright.sparse_attention(q, k, v, top_k=0.4, layout="BSHD"))
    assert "top_k=0.4" in repr(module) and not list(module.parameters())
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(q, k, v), out)


def test_autocast_casts_and_outside_nothing_is(device):
    q, k, v = tensors(device, (1, 2, 300, 64), dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(device, dtype=dtype):
            out, lse = tilewright.sparse_attention(q, k, v, top_k=0.5, return_lse=True)
            mixed = tilewright.sparse_attention(q.to(dtype), k, v, top_k=0.5)
            mask = tilewright.block_mask(q, k, top_k=0.5)
            attended = tilewright.attention(q, k, v, mask)
        plain = tilewright.sparse_attention(q.to(dtype), k.to(dtype), v.to(dtype), top_k=0.5)
        assert out.dtype == dtype and lse.dtype == torch.float32
        assert torch.equal(out, plain) and torch.equal(mixed, plain) and torch.equal(attended, plain)
    with pytest.raises(TypeError, match=r"torch.float32, needed float16 or bfloat16: cast q, k and v with `.half\(\)`"):
        tilewright.sparse_attention(q, k, v)


def test_inference_wants_no_gradient(device):
    q, k, v = tensors(device, (1, 2, 300, 64))
    wanted = q.clone().requires_grad_()
    expected = tilewright.sparse_attention(q, k, v)
    with torch.no_grad():
        assert torch.equal(tilewright.sparse_attention(wanted, k, v), expected)
    with torch.inference_mode():
        assert torch.equal(tilewright.sparse_attention(wanted, k, v), expected)
        fresh = tensors(device, (1, 2, 300, 64))
        assert torch.equal(tilewright.sparse_attention(*fresh), expected)
    assert not tilewright.block_mask(wanted, k).kv_indices.requires_grad, "a selection carries no gradient"


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_goes_case_by_case(device):
    q, k, v = tensors(device, (3, 1, 2, 300, 64))
    found = torch.func.vmap(lambda q, k, v: tilewright.sparse_attention(q, k, v, top_k=0.4))(q, k, v)
    for i in range(3):
        assert torch.equal(found[i], tilewright.sparse_attention(q[i], k[i], v[i], top_k=0.4))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("is_causal", [False, True])
def test_vmap_of_masks(device, is_causal):
    q, k, v = tensors(device, (3, 1, 2, 300, 64))
    options = {"top_k": 0.4, "is_causal": is_causal}

    def call(q, k, v):
        out, mask = tilewright.sparse_attention(q, k, v, **options, return_mask=True)
        return out, mask.kv_indices, mask.to_dense(), mask.row_counts()

    for shared in (False, True):  # the queries of all cases, and the keys of one
        keys, values = (k[0], v[0]) if shared else (k, v)
        found = torch.func.vmap(call, in_dims=(0, None, None) if shared else 0)(q, keys, values)
        for i in range(3):
            expected = call(q[i], k[0 if shared else i], v[0 if shared else i])
            assert all(torch.equal(a[i], b) for a, b in zip(found, expected, strict=True))


def test_eight_threads_at_once(device):
    from concurrent.futures import ThreadPoolExecutor

    cases = [tensors(device, (1, 2, 100 + 50 * i, 64), seed=i) for i in range(8)]
    expected = [tilewright.sparse_attention(*case, top_k=0.4) for case in cases]

    def work(i):
        return [tilewright.sparse_attention(*cases[i], top_k=0.4) for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(work, range(8)), expected):
            assert all(torch.equal(out, wanted) for out in found)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda q, k, v: (q.float(), k, v), TypeError, "q has dtype torch.float32"),
        (lambda q, k, v: (q.double(), k, v), TypeError, "q has dtype torch.float64"),
        (lambda q, k, v: (q, k.half(), v), TypeError, "q has dtype bf16, k has f16: cast"),
        (lambda q, k, v: (q, k.int(), v), TypeError, "k has dtype torch.int32"),
        (lambda q, k, v: (q[0], k, v), ValueError, "q has 3 dimensions (shape torch.Size([2, 300, 64]))"),
        (lambda q, k, v: (q, k[:, :1], v[:, :1]), ValueError, "q has 2 heads and k has 1: pass enable_gqa=True"),
        (lambda q, k, v: (q, k, v[:, :, :299]), ValueError, "seq_kv is (300, 299) in k and v"),
        (lambda q, k, v: (q, k.half().cpu().numpy(), v), TypeError, "k is of type"),
        (lambda q, k, v: (q, k.to("meta"), v), ValueError, "k is on meta, needed on a CUDA GPU or on cpu"),
        (lambda q, k, v: (q.to_sparse(), k, v), Exception, ""),
    ],
)
def test_bad_tensors(device, change, kind, words):
    with pytest.raises(kind) as caught:
        tilewright.sparse_attention(*change(*tensors(device, (1, 2, 300, 64))))
    assert words in str(caught.value)
