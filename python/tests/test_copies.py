"""Grids, masks and modules are copied, pickled, saved and compared."""

import copy
import io
import pickle

import numpy as np
import pytest

import tilewright

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")


def near(b, h, q, kv):
    return abs(q - kv) < 100


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS = [copy.copy, copy.deepcopy, pickled, pytest.param(saved, marks=needs_torch)]
GRIDS = [((4, 8, 8), {}), ((5, 6, 9), {"before": 7, "after": 3}), ((3, 16, 16), {"tile": (1, 8, 8)}), ((8, 8, 8), {"block_size": (128, 128)})]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sizes, options", GRIDS)
def test_a_grid(way, sizes, options):
    grid = tilewright.TokenGrid(sizes, **options)
    x = np.random.default_rng(0).normal(size=(len(grid), 2))
    moved = grid.regroup(x, 0)
    again = way(grid)
    assert again == grid and hash(again) == hash(grid) and repr(again) == repr(grid)
    assert (again.order(), again.grid, again.tile, again.before, again.after, again.block_size, len(again)) == (
        grid.order(), grid.grid, grid.tile, grid.before, grid.after, grid.block_size, len(grid)
    )  # fmt: skip
    assert np.array_equal(again.regroup(x, 0), moved)


def test_grids_are_equal_when_their_orders_are_made_alike():
    grids = [tilewright.TokenGrid(sizes, **options) for sizes, options in GRIDS]
    grids += [tilewright.TokenGrid((4, 8, 8), before=1), tilewright.TokenGrid((4, 8, 8), after=1), tilewright.TokenGrid((8, 4, 8))]
    assert len(set(grids)) == len(grids)
    assert tilewright.TokenGrid((4, 8, 8)) == tilewright.TokenGrid((4, 8, 8), (4, 4, 4))
    assert tilewright.TokenGrid((4, 8, 8)).order() == tilewright.TokenGrid((4, 8, 8), (4, 4, 4)).order()
    assert {tilewright.TokenGrid((4, 8, 8)): "found"}[tilewright.TokenGrid([4, 8, 8])] == "found"
    assert tilewright.TokenGrid((4, 8, 8)) != (4, 8, 8)


@needs_torch
@pytest.mark.parametrize("way", WAYS)
def test_a_module_with_a_grid(way):
    class Net(torch.nn.Module):
        __module__ = "__main__"

        def __init__(self):
            super().__init__()
            self.grid, self.projection = tilewright.TokenGrid((4, 8, 8)), torch.nn.Linear(4, 4)

    import __main__

    __main__.Net = Net
    Net.__qualname__ = "Net"
    net = Net()
    net.grid.regroup(torch.zeros(256, 4), 0)
    assert way(net).grid == net.grid


@needs_torch
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", [{}, {"layout": "BSHD", "top_k": 0.5, "scale": 0.2}, {"mask_mod": near}, {"is_causal": True}])
def test_a_module(way, options):
    if "mask_mod" in options:
        options = {"mask_mod": tilewright.mask_mod(options["mask_mod"])}
    module = tilewright.SparseAttention(**options)
    q, k, v = (torch.randn(1, 2, 300, 64, generator=torch.Generator().manual_seed(i)).half() for i in range(3))
    if options.get("layout") == "BSHD":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    expected = module(q, k, v)
    again = way(module)
    assert torch.equal(again(q, k, v), expected) and repr(again) == repr(module)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"mask_mod": near}])
@pytest.mark.parametrize("framework", ["numpy", pytest.param("torch", marks=needs_torch)])
def test_a_mask(way, options, framework):
    if "mask_mod" in options:
        options = {"mask_mod": tilewright.mask_mod(options["mask_mod"])}
    q, k, v = (np.random.default_rng(i).standard_normal((1, 2, 300, 64)).astype(np.float16) for i in range(3))
    if framework == "torch":
        q, k, v = (torch.from_numpy(x) for x in (q, k, v))
    mask = tilewright.block_mask(q, k, top_k=0.5, **options)
    again = way(mask)
    assert repr(again) == repr(mask) and again.mask_mod == mask.mask_mod
    same = torch.equal if framework == "torch" else np.array_equal
    assert same(again.to_dense(), mask.to_dense()) and same(again.q_indices, mask.q_indices)
    assert same(tilewright.attention(q, k, v, again), tilewright.attention(q, k, v, mask))
