"""Gradients of tensors of PyTorch against float64 autograd of exact masked attention, on the CPU."""

import gc

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import tilewright  # noqa: E402

BOUND = {torch.bfloat16: 6e-3, torch.float16: 1e-3}


def tensors(shape, kv_shape=None, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [shape, kv_shape or shape, kv_shape or shape]
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def expanded(mask):
    """The elements that a block mask keeps, `[b, h, seq_q, seq_kv]`."""
    map = mask.to_dense()
    map = map.repeat_interleave(mask.BLOCK_SIZE[0], dim=-2)[..., : mask.seq_lengths[0], :]
    return map.repeat_interleave(mask.BLOCK_SIZE[1], dim=-1)[..., : mask.seq_lengths[1]]


def exact(q, k, v, keep, score_mod=None):
    """`out` and `lse` in float64, with float64 copies of q, k and v to differentiate by; rows with nothing are 0 and -inf."""
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    group = q.shape[1] // k.shape[1]
    wide_q, wide_k, wide_v = leaves[0], *(x.repeat_interleave(group, dim=1) for x in leaves[1:])
    scores = wide_q @ wide_k.mT * q.shape[-1] ** -0.5
    if score_mod is not None:
        batch, heads, queries, keys = (torch.arange(n) for n in scores.shape)
        scores = score_mod(scores, batch[:, None, None, None], heads[:, None, None], queries[:, None], keys)
    alive = keep.any(-1)
    # A row of -inf alone has gradients of NaN: it is left out before, not after.
    scores = scores.masked_fill(~keep & alive[..., None], -torch.inf)
    out = torch.where(alive[..., None], scores.softmax(-1), 0) @ wide_v
    return leaves, out, torch.where(alive, scores.logsumexp(-1), -torch.inf)


def check(found, expected, bound):
    for what, a, b in zip("qkv", found, expected):
        assert a.grad.dtype == a.dtype and a.grad.shape == a.shape
        apart = (a.grad.double() - b.grad).norm() / b.grad.norm().clamp(min=1e-30)
        assert apart < bound, f"d{what} is off by {apart:.2e}"


def compare(q, k, v, out, lse, keep, score_mod=None, through_lse=True):
    leaves, exact_out, exact_lse = exact(q, k, v, keep, score_mod)
    generator = torch.Generator().manual_seed(9)
    d_out = torch.randn(out.shape, generator=generator).to(out.dtype)
    d_lse = torch.randn(lse.shape, generator=generator) * through_lse
    alive = keep.any(-1).expand(lse.shape)
    ((out * d_out).sum(dtype=torch.float32) + (lse * d_lse)[alive].sum()).backward()
    ((exact_out * d_out.double()).sum() + (exact_lse * d_lse.double())[alive].sum()).backward()
    check((q, k, v), leaves, BOUND[q.dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("dim", "heads", "kv_heads", "seq_q", "seq_kv", "block_size"),
    [(64, 3, 3, 300, 300, (128, 64)), (128, 4, 2, 257, 430, (64, 128)), (72, 2, 1, 64, 200, (64, 64)), (64, 2, 2, 1, 333, (128, 128))],
)
def test_against_exact_masked_attention(dtype, dim, heads, kv_heads, seq_q, seq_kv, block_size):
    q, k, v = tensors((2, heads, seq_q, dim), (2, kv_heads, seq_kv, dim), dtype)
    out, lse, mask = tilewright.sparse_attention(
        q, k, v, top_k=0.3, top_p=0.4, block_size=block_size, enable_gqa=True, return_lse=True, return_mask=True
    )
    compare(q, k, v, out, lse, expanded(mask))
    grads = [x.grad for x in (q, k, v)]
    again = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    # Selected within the call: the same blocks, the same bits.
    direct = tilewright.sparse_attention(*again, top_k=0.3, top_p=0.4, block_size=block_size, enable_gqa=True, return_lse=True)
    assert torch.equal(direct[0], out) and torch.equal(direct[1], lse)
    compare(*again, *direct, expanded(mask))
    assert all(torch.equal(x.grad, grad) for x, grad in zip(again, grads))


def test_rows_and_keys_left_out_have_no_gradient():
    q, k, v = tensors((1, 2, 300, 64))
    map = torch.rand((1, 2, 3, 5), generator=torch.Generator().manual_seed(1)) < 0.6
    map[..., 1, :], map[..., :, 2] = False, False
    out, lse = tilewright.attention(q, k, v, map, return_lse=True)
    mask = tilewright.BlockMask.from_dense(map, seq_lengths=(300, 300))
    compare(q, k, v, out, lse, expanded(mask))
    assert (q.grad[:, :, 128:256] == 0).all() and (k.grad[:, :, 128:192] == 0).all() and (v.grad[:, :, 128:192] == 0).all()
    assert (q.grad[:, :, :128] != 0).any()


def test_functions_carry_their_derivatives():
    cap = 2.0

    def bent(score, b, h, q, kv):
        soft = cap * torch.tanh(score / cap)
        return torch.where(q >= kv, soft * (h + 1), score.abs()) - 0.01 * abs(q - kv)

    q, k, v = tensors((2, 2, 200, 64), dtype=torch.float16)
    window = tilewright.mask_mod(lambda b, h, q, kv: abs(q - kv) < 70)
    out, lse = tilewright.sparse_attention(
        q, k, v, top_k=1.0, top_p=None, score_mod=tilewright.score_mod(bent), mask_mod=window, return_lse=True
    )
    index = torch.arange(200)
    keep = ((index[:, None] - index).abs() < 70).expand(2, 2, -1, -1)
    compare(q, k, v, out, lse, keep, bent)


def test_a_gradient_of_a_function_is_that_of_autograd():
    functions = [
        lambda score, b, h, q, kv: 30.0 * torch.tanh(score / 30.0),
        lambda score, b, h, q, kv: score - 0.5 * abs(q - kv),
        lambda score, b, h, q, kv: torch.where(score > 0.3, torch.log1p(score.abs()), score * torch.sigmoid(score)),
        lambda score, b, h, q, kv: torch.sqrt(score * score + 0.1) * torch.cos(score) / (h + 1) + torch.exp(-score),
        lambda score, b, h, q, kv: score.clamp(-1.0, 1.0) ** 3 + torch.nn.functional.softplus(score),
    ]
    for function in functions:
        made = tilewright.score_mod(function)
        for at in (-2.3, -0.4, 0.2, 1.7):
            score = torch.tensor(at, dtype=torch.float64, requires_grad=True)
            function(score, *(torch.tensor(n) for n in (0, 1, 5, 3))).backward()
            assert made.gradient(at, 0, 1, 5, 3) == pytest.approx(score.grad.item(), rel=1e-4, abs=1e-6), made.source


def test_the_call_holds_its_function():
    q, k, v = tensors((1, 1, 100, 64))
    scale = torch.full((1,), 0.5)
    out = tilewright.sparse_attention(q, k, v, top_k=1.0, score_mod=tilewright.score_mod(lambda s, b, h, q, kv: s * scale[0]))
    gc.collect()
    out.sum().backward()
    assert (q.grad != 0).any()


@pytest.mark.parametrize("wanted", ["out", "lse", "neither", "q alone"])
def test_parts_of_a_gradient(wanted):
    q, k, v = tensors((1, 2, 200, 64))
    if wanted == "q alone":
        k, v = k.detach(), v.detach()
    everything = torch.ones(1, 1, 2, 4, dtype=torch.bool)
    out, lse = tilewright.attention(q, k, v, everything, return_lse=True)
    leaves, exact_out, exact_lse = exact(q, k, v, torch.ones(1, 2, 200, 200, dtype=torch.bool))
    if wanted == "neither":
        (out.detach().sum() + q.float().sum()).backward()
        assert (q.grad == 1).all() and k.grad is None
        return
    if wanted == "lse":
        lse.sum().backward()
        exact_lse.sum().backward()
        check((q, k), leaves, BOUND[q.dtype])
        assert (v.grad == 0).all()
        return
    # `sum` gives a gradient without memory of its own: one element, expanded.
    out.float().pow(2).sum().backward()
    exact_out.pow(2).sum().backward()
    check((q, k, v) if wanted == "out" else (q,), leaves, 1e-2)
    assert (k.grad is None) == (wanted == "q alone")


def test_layouts():
    q, k, v = tensors((2, 200, 3, 64))
    out = tilewright.sparse_attention(q, k, v, top_k=0.5, layout="BSHD")
    out.sum().backward()
    turned = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v)]
    tilewright.sparse_attention(*turned, top_k=0.5).sum().backward()
    for a, b in zip((q, k, v), turned):
        assert a.grad.shape == a.shape and torch.equal(a.grad, b.grad.transpose(1, 2))
    packed = torch.stack([x.detach() for x in (q, k, v)], dim=2).requires_grad_()
    tilewright.sparse_attention(*packed.unbind(2), top_k=0.5, layout="BSHD").sum().backward()
    assert torch.equal(packed.grad, torch.stack([x.grad for x in (q, k, v)], dim=2))


def gradients(call, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    weights = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(3))
    (call(*leaves).float() * weights).sum().backward()
    return [x.grad for x in leaves]


def test_compile_checkpoint_and_autocast():
    inputs = tensors((1, 2, 300, 64))
    bias = tilewright.score_mod(lambda score, b, h, q, kv: 3.0 * torch.tanh(score / 3.0))

    def call(q, k, v):
        return tilewright.sparse_attention(q, k, v, top_k=0.5, score_mod=bias)

    expected = gradients(call, *inputs)
    for other in (
        torch.compile(call, fullgraph=True, backend="aot_eager"),
        torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True),
        lambda *args: torch.utils.checkpoint.checkpoint(call, *args, use_reentrant=False),
        lambda *args: torch.utils.checkpoint.checkpoint(call, *args, use_reentrant=True),
        lambda q, k, v: torch.ops.tilewright.sparse_attention(
            q, k, v, 0.5, 0.2, 128, 64, None, bias._native.number, 0, False
        )[0],
    ):
        assert all(torch.equal(a, b) for a, b in zip(gradients(other, *inputs), expected))
    wide = [x.detach().float() for x in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gradients(call, *wide)
    assert all(a.dtype == torch.float32 and torch.equal(a, b.float()) for a, b in zip(cast, expected))
    mask = tilewright.block_mask(*inputs[:2], top_k=0.5)

    def attend(q, k, v):
        return tilewright.attention(q, k, v, mask, score_mod=bias)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for other in (attend, compiled):
        assert all(torch.equal(a, b) for a, b in zip(gradients(other, *inputs), expected))


def test_opcheck():
    q, k, v = tensors((1, 2, 200, 64))
    mask = tilewright.block_mask(q, k, top_k=0.5)
    options = (128, 64, None, 0, 0, False)
    lists = tuple(mask.lists().values())
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.tilewright.attention.default, (q, k, v, *lists, *options), test_utils=tests)
    torch.library.opcheck(
        torch.ops.tilewright.sparse_attention.default, (q, k, v, 0.5, None, *options), test_utils=tests
    )
    with torch.no_grad():
        out, lse = tilewright.attention(q, k, v, mask, return_lse=True)
    plain = [x.detach() for x in (q, k, v)]
    torch.library.opcheck(
        torch.ops.tilewright.attention_backward.default,
        (out, None, *plain, out, lse, *lists, *options),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_around_a_vmap():
    cases = tensors((3, 1, 2, 200, 64))
    one = lambda q, k, v: tilewright.sparse_attention(q, k, v, top_k=0.5)  # noqa: E731
    found = gradients(torch.func.vmap(one), *cases)
    expected = gradients(lambda *args: torch.stack([one(*parts) for parts in zip(*args)]), *cases)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_there_is_no_second_derivative():
    q, k, v = tensors((1, 1, 100, 64))
    out = tilewright.sparse_attention(q, k, v)
    with pytest.raises(tilewright.Error, match="a second derivative is wanted"):
        torch.autograd.grad(out.float().pow(2).sum(), q, create_graph=True)


def test_a_training_run_follows_exact_masked_attention():
    torch.manual_seed(0)
    tokens, width, heads = 160, 64, 1
    block = [torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)]
    model = torch.nn.ModuleList(block)
    twin = torch.nn.ModuleList([torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)])
    twin.load_state_dict(model.state_dict())
    map = torch.rand(1, 1, 2, 3, generator=torch.Generator().manual_seed(2)) < 0.7
    map[..., 0] = True
    keep = expanded(tilewright.BlockMask.from_dense(map, seq_lengths=(tokens, tokens)))

    def ours(q, k, v):
        return tilewright.attention(q.half(), k.half(), v.half(), map).float()

    def theirs(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)

    x = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(4))
    target = torch.sin(x.cumsum(1) / 5)
    losses = []
    for layers, attend in ((model, ours), (twin, theirs)):
        optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)
        run = []
        for _ in range(40):
            parts = layers[0](x).unflatten(-1, (3, heads, width)).permute(2, 0, 3, 1, 4)
            out = layers[1](attend(*parts).transpose(1, 2).flatten(2)) + x
            loss = (out - target).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.append(loss.item())
        losses.append(run)
    assert losses[0][-1] < 0.8 * losses[0][0], losses[0]
    for ours_at, theirs_at in zip(*losses):
        assert ours_at == pytest.approx(theirs_at, rel=1e-2)
