"""Token grids in Python: the order, and tensors moved by it."""

import numpy
import pytest

import tilewright

GRIDS = [((4, 8, 8), {}), ((5, 6, 9), {}), ((5, 6, 9), {"before": 7, "after": 3}), ((3, 16, 16), {"tile": (1, 8, 8)})]


@pytest.mark.parametrize("sizes, options", GRIDS)
def test_the_order_is_a_permutation_with_its_inverse(sizes, options):
    grid = tilewright.TokenGrid(sizes, **options)
    order, inverse = grid.order(), grid.inverse()
    assert len(grid) == len(order) == sizes[0] * sizes[1] * sizes[2] + options.get("before", 0) + options.get("after", 0)
    assert sorted(order) == list(range(len(grid)))
    assert all(inverse[token] == position for position, token in enumerate(order))
    assert all(grid.block_of(token) == inverse[token] // 64 for token in (0, len(grid) // 2, len(grid) - 1))


def test_a_block_is_a_cube():
    grid = tilewright.TokenGrid((4, 8, 8))
    first = numpy.array(grid.order()[:64])
    t, h, w = first // 64, first // 8 % 8, first % 8
    assert all(axis.max() - axis.min() == 3 for axis in (t, h, w))
    assert grid.grid == (4, 8, 8) and grid.tile == (4, 4, 4) and "4×8×8 tokens" in repr(grid)


def test_blocks_of_128():
    assert tilewright.TokenGrid((8, 8, 8), block_size=(128, 128)).tile == (8, 4, 4)


def test_numpy_arrays():
    grid = tilewright.TokenGrid((5, 6, 9), before=7)
    x = numpy.random.default_rng(1).normal(size=(2, len(grid), 3)).astype(numpy.float32)
    assert (grid.regroup(x, 1) == x[:, grid.order()]).all()
    assert (grid.restore(grid.regroup(x, -2), 1) == x).all()


LAYOUTS = [((277, 16), 0), ((2, 277, 16), 1), ((2, 3, 277, 16), 2), ((2, 277, 3, 16), 1), ((277,), 0), ((2, 5, 277), -1), ((2, 277, 5), 1)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64"])
@pytest.mark.parametrize("shape, dim", LAYOUTS)
def test_tensors(shape, dim, dtype, device):
    """Those that suit the GPU kernel and those that do not."""
    torch = pytest.importorskip("torch")
    grid = tilewright.TokenGrid((5, 6, 9), before=4, after=3)
    x = (torch.randn(shape, device=device) * 100).to(getattr(torch, dtype))
    order = torch.tensor(grid.order(), device=device)
    for _ in range(2):
        moved = grid.regroup(x, dim)
        assert moved.dtype == x.dtype and torch.equal(moved, x.index_select(dim, order))
        assert torch.equal(grid.restore(moved, dim), x)


def test_strides(device):
    """Parts of tensors and transposed ones are moved without a copy of them."""
    torch = pytest.importorskip("torch")
    grid = tilewright.TokenGrid((5, 6, 9))
    order = torch.tensor(grid.order(), device=device)
    whole = torch.randn(2, 270 + 10, 24, device=device, dtype=torch.float16)
    heads = torch.randn(2, 270, 3, 16, device=device, dtype=torch.float16).transpose(1, 2)
    channels = torch.randn(2, 24, 270, device=device).transpose(1, 2)
    parts = whole[:, 10:], whole[:, 3:273, :16], whole[:, 10:, 1:17], channels, whole[:1, :270].expand(2, -1, -1)
    for x, dim in [(heads, 2), *((part, 1) for part in parts)]:
        assert torch.equal(grid.regroup(x, dim), x.index_select(dim, order))


def test_gradients_flow(device):
    torch = pytest.importorskip("torch")
    grid = tilewright.TokenGrid((5, 6, 9))
    x = torch.randn(2, 270, 16, device=device, requires_grad=True)
    weights = torch.randn(2, 270, 16, device=device)
    (grid.regroup(x, 1) * grid.regroup(weights, 1)).sum().backward()
    assert torch.equal(x.grad, weights)


@pytest.mark.gpu
def test_on_a_stream_and_in_a_graph():
    torch = pytest.importorskip("torch")
    grid = tilewright.TokenGrid((5, 6, 9))
    order = torch.tensor(grid.order(), device="cuda")
    x = torch.zeros(2, 270, 64, device="cuda", dtype=torch.bfloat16)
    grid.regroup(x, 1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        y = torch.randn(2, 270, 64, device="cuda", dtype=torch.bfloat16)
        moved = grid.regroup(y, 1)
    stream.synchronize()
    assert torch.equal(moved, y[:, order])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = grid.regroup(x, 1)
    x.copy_(torch.randn(2, 270, 64, device="cuda"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, x[:, order])


@pytest.mark.parametrize("batches", [70_000, 65_536])
@pytest.mark.parametrize("rank", [3, 4])
def test_more_batches_than_a_launch_has_rows_of_blocks(device, batches, rank):
    """A dimension of a launch's grid has 65,535 blocks at most."""
    torch = pytest.importorskip("torch")
    grid = tilewright.TokenGrid((2, 2, 2))
    shape = (batches, 8, 8) if rank == 3 else (batches, 1, 8, 8)
    x = torch.arange(batches * 64, device=device, dtype=torch.float32).reshape(shape)
    moved = grid.regroup(x, -2)
    assert torch.equal(moved, x.index_select(-2, torch.tensor(grid.order(), device=device)))
    assert torch.equal(grid.restore(moved, -2), x)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tilewright.TokenGrid((4, 0, 8)), "the grid is 4×0×8"),
        (lambda: tilewright.TokenGrid((4, 8, 8), (4, 4, 8)), "a tile of 4×4×8 .* holds 128 tokens, needed 64"),
        (lambda: tilewright.TokenGrid((4, 8, 8), block_size=(128, 32)), "128.*32"),
        (lambda: tilewright.TokenGrid((4, 8)), r"grid is \(4, 8\), needed three sizes"),
        (lambda: tilewright.TokenGrid((4, 8, -8)), r"grid is \(4, 8, -8\), needed sizes t, h and w of at least 1"),
        (lambda: tilewright.TokenGrid((2**40, 8, 8)), "grid is .*needed sizes t, h and w of at least 1 and below"),
        (lambda: tilewright.TokenGrid((4, 8, 8), (-4, 4, 4)), r"tile is \(-4, 4, 4\), needed sizes"),
        (lambda: tilewright.TokenGrid((4, 8, 8), before=2**70), "before is .*below"),
        (lambda: tilewright.TokenGrid((4, 8, 8), before=-1), "before is -1"),
        (lambda: tilewright.TokenGrid((4, 8, 8), after=1.5), "after is 1.5"),
        (lambda: tilewright.TokenGrid((4.0, 8, 8)), r"grid is \(4.0, 8, 8\), needed three sizes"),
        (lambda: tilewright.TokenGrid(256), r"grid is \(256,\), needed three sizes"),
        (lambda: tilewright.TokenGrid((4, 8, 8)).regroup(numpy.zeros((2, 255, 4)), 1), "has 255 tokens, needed 256"),
        (lambda: tilewright.TokenGrid((4, 8, 8)).regroup(numpy.zeros((256, 4)), 2), "dim is 2, needed one of the 2 dimensions"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("tensor", [[1.0] * 256, "tokens", None])
def test_what_is_no_tensor(tensor):
    with pytest.raises(TypeError, match=f"the tensor is of type {type(tensor).__name__}, needed a torch.Tensor or a numpy array"):
        tilewright.TokenGrid((4, 8, 8)).regroup(tensor, 0)


def test_tokens_that_are_not_there():
    for token in (256, -1):
        with pytest.raises(IndexError, match=f"no token {token}, tokens are numbered 0 to 255"):
            tilewright.TokenGrid((4, 8, 8)).block_of(token)


@pytest.mark.parametrize("dim", ["a", 0.0, None, (0,)])
def test_a_dimension_is_a_whole_number(dim):
    grid, tensor = tilewright.TokenGrid((4, 8, 8)), numpy.zeros((256, 4))
    for move in (grid.regroup, grid.restore):
        with pytest.raises(TypeError, match="dim is .*needed the number of a dimension"):
            move(tensor, dim)
    assert (grid.regroup(tensor, numpy.int64(0)) == grid.regroup(tensor, 0)).all()


def test_a_token_is_a_whole_number_of_the_grid():
    grid = tilewright.TokenGrid((4, 8, 8))
    with pytest.raises(TypeError, match="token is 'a', of type str"):
        grid.block_of("a")
    with pytest.raises(IndexError, match="tokens are numbered 0 to 255"):
        grid.block_of(2**70)
