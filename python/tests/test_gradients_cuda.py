"""Gradients of tensors on a GPU against float64 autograd of exact masked attention."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import tilewright  # noqa: E402
from test_gradients import BOUND, check, exact, expanded  # noqa: E402

pytestmark = pytest.mark.gpu


def tensors(shape, kv_shape=None, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [shape, kv_shape or shape, kv_shape or shape]
    return [torch.randn(s, generator=generator).to("cuda", dtype).requires_grad_() for s in shapes]


def compare(q, k, v, out, lse, keep, score_mod=None):
    """Differentiates a weighted sum of `out` and `lse`, here and in float64."""
    leaves, exact_out, exact_lse = exact(q.cpu(), k.cpu(), v.cpu(), keep.cpu(), score_mod)
    generator = torch.Generator().manual_seed(9)
    d_out = torch.randn(out.shape, generator=generator).to(out.dtype)
    d_lse = torch.randn(lse.shape, generator=generator)
    alive = keep.cpu().any(-1).expand(lse.shape)
    (lse * d_lse.cuda())[alive.cuda()].sum().add((out * d_out.cuda()).sum(dtype=torch.float32)).backward()
    ((exact_out * d_out.double()).sum() + (exact_lse * d_lse.double())[alive].sum()).backward()
    check([Grad(x) for x in (q, k, v)], leaves, BOUND[q.dtype])


class Grad:
    """A tensor's gradient on the CPU, as `check` reads it."""

    def __init__(self, tensor):
        self.grad, self.dtype, self.shape = tensor.grad.cpu(), tensor.dtype, tensor.shape


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


def test_rows_and_keys_left_out_have_no_gradient():
    q, k, v = tensors((1, 2, 300, 64))
    map = torch.rand((1, 1, 3, 5), generator=torch.Generator().manual_seed(1)) < 0.6
    map[..., 1, :], map[..., :, 2] = False, False
    out, lse = tilewright.attention(q, k, v, map.cuda(), return_lse=True)
    mask = tilewright.BlockMask.from_dense(map, seq_lengths=(300, 300))
    compare(q, k, v, out, lse, expanded(mask).expand(1, 2, -1, -1))
    assert (q.grad[:, :, 128:256] == 0).all() and (k.grad[:, :, 128:192] == 0).all() and (v.grad[:, :, 128:192] == 0).all()


def test_functions_carry_their_derivatives():
    def bent(score, b, h, q, kv):
        return 2.0 * torch.tanh(score / 2.0) * (h + 1) - 0.01 * abs(q - kv)

    q, k, v = tensors((2, 2, 200, 64), dtype=torch.float16)
    window = tilewright.mask_mod(lambda b, h, q, kv: abs(q - kv) < 70)
    out, lse = tilewright.sparse_attention(
        q, k, v, top_k=1.0, top_p=None, score_mod=tilewright.score_mod(bent), mask_mod=window, return_lse=True
    )
    index = torch.arange(200)
    keep = ((index[:, None] - index).abs() < 70).expand(2, 2, -1, -1)
    compare(q, k, v, out, lse, keep, bent)


def gradients(call, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    weights = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(3)).cuda()
    (call(*leaves).float() * weights).sum().backward()
    return [x.grad for x in leaves]


def test_compile_checkpoint_autocast_and_the_same_bits():
    inputs = tensors((1, 2, 300, 64))

    def call(q, k, v):
        return tilewright.sparse_attention(q, k, v, top_k=0.5)

    expected = gradients(call, *inputs)
    for other in (
        call,
        torch.compile(call, fullgraph=True, backend="aot_eager"),
        lambda *args: torch.utils.checkpoint.checkpoint(call, *args, use_reentrant=False),
    ):
        assert all(torch.equal(a, b) for a, b in zip(gradients(other, *inputs), expected))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        cast = gradients(call, *(x.detach().float() for x in inputs))
    assert all(a.dtype == torch.float32 and torch.equal(a, b.float()) for a, b in zip(cast, expected))


def test_layouts_and_gradients_of_any_strides():
    q, k, v = tensors((2, 200, 3, 64))
    out, lse = tilewright.sparse_attention(q, k, v, top_k=0.5, layout="BSHD", return_lse=True)
    # The gradients of sums are one element, expanded.
    (out.sum(dtype=torch.float32) + lse.sum()).backward()
    turned = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v)]
    out, lse = tilewright.sparse_attention(*turned, top_k=0.5, return_lse=True)
    ((out * torch.ones_like(out)).sum(dtype=torch.float32) + (lse * torch.ones_like(lse)).sum()).backward()
    for a, b in zip((q, k, v), turned):
        assert a.grad.shape == a.shape and torch.equal(a.grad, b.grad.transpose(1, 2))


def test_on_another_stream():
    q, k, v = tensors((1, 4, 1000, 128))
    expected = gradients(lambda *args: tilewright.sparse_attention(*args, top_k=0.3), q, k, v)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            found = gradients(lambda *args: tilewright.sparse_attention(*args, top_k=0.3), q, k, v)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_two_hundred_steps_follow_exact_masked_attention():
    """A transformer trained with these kernels, beside its twin with attention in float32 over the same blocks and the same rounded q, k and v."""
    torch.manual_seed(0)
    tokens, heads, dim, layers = 520, 4, 64, 2
    width = heads * dim

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = torch.nn.ModuleList([torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)])
            self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
            self.mlp = torch.nn.Sequential(torch.nn.Linear(width, 2 * width), torch.nn.GELU(), torch.nn.Linear(2 * width, width))

        def forward(self, x, attend):
            q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, heads, dim)).permute(2, 0, 3, 1, 4)
            x = x + self.out(attend(q, k, v).transpose(1, 2).flatten(2))
            return x + self.mlp(self.norms[1](x))

    model = torch.nn.ModuleList(Block() for _ in range(layers)).cuda()
    twin = torch.nn.ModuleList(Block() for _ in range(layers)).cuda()
    twin.load_state_dict(model.state_dict())
    map = torch.rand((1, heads, 5, 9), generator=torch.Generator().manual_seed(2)) < 0.3
    map[..., 0] = True
    mask = tilewright.BlockMask.from_dense(map, seq_lengths=(tokens, tokens))
    keep, mask = expanded(mask).cuda(), mask.to("cuda")

    def ours(q, k, v):
        return tilewright.attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask).float()

    def exactly(q, k, v):
        q, k, v = (x.bfloat16().float() for x in (q, k, v))
        return ((q @ k.mT) * dim**-0.5).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    generator = torch.Generator().manual_seed(4)
    batches = [torch.randn((2, tokens, width), generator=generator).cuda() for _ in range(8)]
    losses, gradients = [], []
    for blocks, attend in ((model, ours), (twin, exactly)):
        optimizer = torch.optim.Adam(blocks.parameters(), lr=1e-3)
        run = []
        for step in range(200):
            x = start = batches[step % len(batches)]
            for block in blocks:
                x = block(x, attend)
            # Every token is to become the mean of the tokens before it: nothing but attention can tell.
            target = start.cumsum(1) / torch.arange(1, tokens + 1, device="cuda")[:, None]
            loss = (x - target).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                gradients.append(torch.cat([p.grad.flatten() for p in blocks.parameters()]))
            optimizer.step()
            run.append(loss.detach())
        losses.append(torch.stack(run).tolist())
    apart = ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item()
    assert apart < 6e-3, f"the first gradients are {apart:.1e} apart"
    assert losses[1][-1] < 0.5 * losses[1][0], (losses[1][0], losses[1][-1])
    # One step's loss wanders as the weights do; the course of the training does not.
    apart = [abs(a - b) / b for a, b in zip(*losses)]
    print(
        f"loss {losses[0][0]:.4f} to {losses[0][-1]:.4f}, with float32 attention to {losses[1][-1]:.4f}; "
        f"{sum(apart) / len(apart):.1e} apart in the mean, {max(apart):.1e} at most"
    )
    assert sum(apart) / len(apart) < 5e-3 and max(apart) < 5e-2
