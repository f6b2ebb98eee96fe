"""Compilers, exporters and fake tensors: what they see of the functions and of token grids, and that nothing of them stays behind."""

import os
import subprocess
import sys
import tempfile

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch._subclasses import FakeTensor, FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

import tilewright  # noqa: E402

# ---- token grids -------------------------------------------------------------------------------------------------

SIZES, OPTIONS = (5, 6, 9), {"before": 4, "after": 3}


def order_of(grid, device):
    return torch.tensor(grid.order(), device=device)


class Regrouped(torch.nn.Module):
    def __init__(self, grid):
        super().__init__()
        self.grid = grid

    def forward(self, x):
        return self.grid.restore(self.grid.regroup(x, 1) * 2, 1), self.grid.regroup(x, dim=-2)


def checked(grid, found, x):
    twice, moved = found
    assert type(twice) is torch.Tensor and torch.equal(twice, x * 2)
    assert torch.equal(moved, x[:, order_of(grid, x.device)])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_grid_in_a_compiled_function(device, backend):
    torch._dynamo.reset()  # every case compiles the same code for a module of its own
    module = Regrouped(tilewright.TokenGrid(SIZES, **OPTIONS))
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.randn(2, 277, 8, device=device).to(dtype)
        checked(module.grid, compiled(x), x)
        checked(module.grid, module(x), x)


def test_a_grid_made_within_a_compiled_function(device):
    x = torch.randn(2, 277, 8, device=device)
    compiled = torch.compile(
        lambda x: tilewright.TokenGrid(SIZES, **OPTIONS).regroup(x, 1), fullgraph=True, backend="eager"
    )
    grid = tilewright.TokenGrid(SIZES, **OPTIONS)
    assert torch.equal(compiled(x), x[:, order_of(grid, device)])


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_grid_of_the_sizes_of_a_compiled_functions_input(device, dynamic):
    def regrouped(x, y):
        t, h, w, _ = x.shape
        return tilewright.TokenGrid((t, h, w), before=len(y)).regroup(torch.cat([y, x.flatten(0, 2)]), 0)

    torch._dynamo.reset()
    compiled = torch.compile(regrouped, fullgraph=True, backend="eager", dynamic=dynamic)
    for sizes, before in (((3, 7, 11), 2), ((4, 7, 11), 2), ((5, 8, 10), 6), ((3, 7, 11), 2)):
        x, y = torch.randn(*sizes, 8, device=device), torch.randn(before, 8, device=device)
        assert torch.equal(compiled(x, y), regrouped(x, y)), sizes


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_through_a_compiled_grid(device, backend):
    grid = tilewright.TokenGrid(SIZES, **OPTIONS)
    x, weights = torch.randn(2, 277, 8, device=device, requires_grad=True), torch.randn(2, 277, 8, device=device)
    loss = torch.compile(lambda x: (grid.regroup(x, 1) * weights).sum(), fullgraph=True, backend=backend)(x)
    loss.backward()
    assert torch.equal(x.grad, grid.restore(weights, 1))


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_grid(device, strict):
    module = Regrouped(tilewright.TokenGrid(SIZES, **OPTIONS))
    x, y = (torch.randn(2, 277, 8, device=device) for _ in range(2))
    program = torch.export.export(module, (x,), strict=strict)
    checked(module.grid, program.module()(y), y)
    checked(module.grid, module(y), y)
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(program, os.path.join(folder, "program.pt2"))
        checked(module.grid, torch.export.load(os.path.join(folder, "program.pt2")).module()(y), y)


def test_fake_tensors_stay_in_their_mode(device):
    module = Regrouped(tilewright.TokenGrid((3, 7, 11)))
    with FakeTensorMode():
        fake = torch.empty(2, 231, 8, device=device, dtype=torch.float16)
        assert all(isinstance(found, FakeTensor) and found.shape == fake.shape for found in module(fake))
    assert isinstance(module(fake)[0], FakeTensor), "after the mode too"
    x = torch.randn(2, 231, 8, device=device)
    checked(module.grid, module(x), x)
    with FakeTensorMode():
        assert isinstance(module(torch.empty(2, 231, 8, device=device))[0], FakeTensor)
    meta = module.grid.regroup(torch.empty(2, 231, 8, device="meta"), 1)
    assert meta.is_meta and meta.shape == (2, 231, 8)


TRANSFORMS = {
    "functionalize": torch.func.functionalize,
    "vmap": lambda f: lambda x: torch.func.vmap(f, in_dims=-1, out_dims=-1)(x),
    "grad": lambda f: lambda x: torch.func.vjp(f, x)[0].detach(),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[0],
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_grid_first_used_within_a_transform_keeps_nothing_of_it(device, transform):
    # A grid of its own for each: only what is used first makes the index.
    grid = tilewright.TokenGrid((3, 5, 7 + list(TRANSFORMS).index(transform)))
    x = torch.randn(len(grid), 2, device=device, dtype=torch.float64)
    expected = x[order_of(grid, device)]
    call = lambda x: grid.regroup(x, 0)  # noqa: E731
    assert torch.equal(TRANSFORMS[transform](call)(x), expected)
    kept = [index for (sizes, *_), index in tilewright.grid._INDICES.items() if sizes == grid._sizes]
    functorch = torch._C._functorch
    assert kept and not any(torch._is_functional_tensor(x) or functorch.is_functorch_wrapped_tensor(x) for x in kept)
    assert torch.equal(make_fx(call)(x)(x), expected) and torch.equal(call(x), expected)
    assert torch.autograd.gradgradcheck(lambda x: call(x).pow(3), x[:, :1].clone().requires_grad_())


def test_a_grid_within_vmap_that_is_compiled(device):
    grid = tilewright.TokenGrid((4, 6, 5))
    x = torch.randn(3, 8, 120, device=device)
    cases = torch.vmap(lambda x: grid.regroup(x, 0), in_dims=1, out_dims=1)
    compiled = torch.compile(cases, fullgraph=True, backend="eager")
    x = x.permute(2, 0, 1)  # [tokens, 3, 8]
    assert torch.equal(compiled(x), x[order_of(grid, device)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("restore", [False, True])
def test_opcheck_of_the_operator(device, dtype, restore):
    x = torch.randn(2, 277, 8, device=device, dtype=dtype)
    for tensor, dim in ((x, 1), (x.transpose(1, 2), 2), (x.clone().requires_grad_(), 1)):
        arguments = (tensor, dim, SIZES, (4, 4, 4), 4, 3, (128, 64), restore)
        torch.library.opcheck(torch.ops.tilewright.regroup.default, arguments)


# ---- whatever is imported first -----------------------------------------------------------------------------------

IMPORTS = {
    "tilewright first": "import tilewright, torch",
    "torch first": "import torch, tilewright",
    "after a compiled call": "import torch; torch.compile(lambda: torch.ones(1), fullgraph=True, backend='eager')(); import tilewright",
}
CALLS = {
    "sparse_attention": "lambda q, k, v: tilewright.sparse_attention(q, k, v, top_k=0.4)",
    "attention": "lambda q, k, v: tilewright.attention(q, k, v, torch.ones(1, 1, 3, 5, dtype=torch.bool))",
    "block_mask": "lambda q, k, v: tilewright.block_mask(q, k, top_k=0.4).kv_indices",
    "return_mask": "lambda q, k, v: tilewright.sparse_attention(q, k, v, return_mask=True)[1].to_dense()",
    "TokenGrid": "lambda q, k, v: tilewright.TokenGrid((3, 10, 10)).regroup(q, 2)",
    "a TokenGrid": "lambda q, k, v, grid=tilewright.TokenGrid((3, 10, 10)): grid.restore(q, 2)",
    "SparseAttention": "lambda q, k, v: tilewright.SparseAttention(top_k=0.4)(q, k, v)",
}
# One process for each order of imports and each call: only the first call of a process is a first call.
PROGRAM = """
{imports}
inputs = [torch.randn(1, 2, 300, 64).bfloat16() for _ in range(3)]
call = {call}
found = torch.compile(call, fullgraph=True, backend="eager")(*inputs)
assert torch.equal(found, call(*inputs)), "another result"
"""


def run(program):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("call", CALLS)
def test_a_first_call_within_a_compiled_function(call):
    run(PROGRAM.format(imports=IMPORTS["tilewright first"], call=CALLS[call]))


@pytest.mark.parametrize("imports", ["torch first", "after a compiled call"])
def test_a_first_call_after_other_imports(imports):
    run(PROGRAM.format(imports=IMPORTS[imports], call=CALLS["sparse_attention"]))


def test_imported_within_a_compiled_function():
    layer = "def layer(q, k, v):\n    import tilewright\n    return tilewright.sparse_attention(q, k, v, top_k=0.4)\n"
    run(PROGRAM.format(imports=f"import torch\n{layer}", call="layer"))


# ---- masks -------------------------------------------------------------------------------------------------------


def test_a_mask_leaves_and_enters_compiled_functions(device):
    q, k, v = (torch.randn(1, 2, 300, 64, device=device).bfloat16() for _ in range(3))
    make = torch.compile(lambda q, k: tilewright.block_mask(q, k, top_k=0.4), fullgraph=True, backend="eager")
    use = torch.compile(lambda q, k, v, mask: tilewright.attention(q, k, v, mask), fullgraph=True, backend="eager")
    mask = make(q, k)
    assert type(mask) is tilewright.BlockMask and "sparsity=" in repr(mask)
    assert torch.equal(mask.kv_indices, tilewright.block_mask(q, k, top_k=0.4).kv_indices)
    assert torch.equal(use(q, k, v, mask), tilewright.attention(q, k, v, mask))


def test_the_text_of_a_mask_without_contents():
    q = torch.empty(1, 2, 300, 64, dtype=torch.float16)
    with FakeTensorMode() as mode:
        mask = tilewright.block_mask(mode.from_tensor(q), mode.from_tensor(q))
        assert repr(mask) == "BlockMask(shape=(1, 2, 300, 300), BLOCK_SIZE=(128, 64), mask_mod=None)"
    assert "sparsity" not in repr(mask) and "sparsity" not in repr(tilewright.block_mask(q, q).to("meta"))


@pytest.mark.parametrize("strict", [False, True])
def test_a_mask_keeps_nothing_of_an_export(device, strict):
    q = torch.randn(1, 2, 300, 64, device=device).half()
    expected = tilewright.block_mask(q, q, top_k=0.4)
    lists = tilewright.block_mask(q, q, top_k=0.4).lists()

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            # Its lists by key are made when they are asked for.
            self.mask = tilewright.BlockMask(**lists, seq_lengths=(300, 300))

        def forward(self, x):
            return x + self.mask.q_indices.sum() + self.mask.q_num_blocks.sum()

    layer = Layer()
    program = torch.export.export(layer, (torch.zeros(3, device=device),), strict=strict).module()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(tilewright.BlockMask(**lists, seq_lengths=(300, 300)).q_indices, FakeTensor)
        layer.mask.q_indices  # noqa: B018
    assert type(layer.mask.q_indices) is torch.Tensor and type(layer.mask.q_num_blocks) is torch.Tensor
    assert torch.equal(layer.mask.q_num_blocks, expected.q_num_blocks)
    x = torch.ones(3, device=device)
    assert torch.equal(program(x), layer(x))


@pytest.mark.gpu
def test_the_text_of_a_mask_while_a_graph_is_captured():
    q = torch.randn(1, 2, 300, 64, device="cuda").half()
    mask = tilewright.block_mask(q, q)
    assert "sparsity" in repr(mask)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        assert "sparsity" not in repr(mask)
