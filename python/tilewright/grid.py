"""Token grids: the tokens of a video regrouped so that a sparse block is a compact piece of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Optional

from . import _native
from ._torch import torch_of
from ._typing import Array
from .mask import checked_pair

#: Grid, tile, tokens before and after, block size.
_Sizes = tuple[tuple[int, int, int], tuple[int, int, int], int, int, tuple[int, int]]


class TokenGrid:
    """The tokens of a video of t × h × w, in another order, and the means to move tensors into it and back.

    In raster order, 64 consecutive tokens are a line of one frame; regrouped they are a cube of 4×4×4, and heads that look at their
    neighbourhood find it in fewer blocks. Regroup once where the tokens enter the model, the tables of the rotary embedding as well, and
    restore them at its exit: attention does not depend on the order of its tokens.

    Args:
        grid: tokens along t, h and w (after patches were made), w fastest in raster order. Need not be multiples of the tile.
        tile: the piece of the grid that is a block of keys: its product is `block_size[1]`. 4×4×4, or 8×4×4 for blocks of 128, when not
            given.
        before: tokens before the grid (a text) that keep their places.
        after: tokens after the grid that keep their places.
        block_size: queries and keys in a block of the attention.

    Raises:
        TypeError: a block_size that is no pair.
        ValueError: a size of zero, a block_size that there is not, or a tile whose product is not the number of keys in a block.

    Example:
        >>> grid = TokenGrid((21, 30, 52))
        >>> regrouped = grid.regroup(hidden_states, dim=1)
        >>> hidden_states = grid.restore(regrouped, dim=1)
    """

    def __init__(
        self,
        grid: Sequence[int],
        tile: Optional[Sequence[int]] = None,
        *,
        before: int = 0,
        after: int = 0,
        block_size: tuple[int, int] = (128, 64),
    ) -> None:
        sizes, tile = _three("grid", grid), None if tile is None else _three("tile", tile)
        around = []
        for what, tokens in (("before", before), ("after", after)):
            if not isinstance(tokens, Integral) or not 0 <= tokens < 2**31:
                raise ValueError(f"{what} is {tokens!r}, needed a number of tokens of at least 0 and below 2³¹")
            around.append(_constant(tokens))
        block_size = checked_pair(block_size)
        tile, self._tokens = _checked(sizes, tile, *around, block_size)
        # Numbers alone describe the grid: they are compared, pickled and traced, and equal grids share what is made of them.
        self._sizes: _Sizes = (sizes, tile, around[0], around[1], block_size)

    @property
    def _native(self) -> _native.TokenGrid:
        return _native_of(*self._sizes)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along t, h and w."""
        return self._sizes[0]

    @property
    def tile(self) -> tuple[int, int, int]:
        """The tile along t, h and w."""
        return self._sizes[1]

    @property
    def before(self) -> int:
        """Tokens before the grid."""
        return self._sizes[2]

    @property
    def after(self) -> int:
        """Tokens after the grid."""
        return self._sizes[3]

    @property
    def block_size(self) -> tuple[int, int]:
        """Queries and keys in a block of the attention."""
        return self._sizes[4]

    def __len__(self) -> int:
        """All tokens, those before and after the grid included."""
        return self._tokens

    def __repr__(self) -> str:
        return f"TokenGrid({self._native.description}, tile={self.tile})"

    def __eq__(self, other: object) -> bool:
        return self._sizes == other._sizes if isinstance(other, TokenGrid) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._sizes)

    # It never changes: a copied module shares it.
    def __copy__(self) -> "TokenGrid":
        return self

    def __deepcopy__(self, memo: Any) -> "TokenGrid":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return grid_of, self._sizes

    def order(self) -> list[int]:
        """The token (by its raster number) at each position."""
        return self._native.order()

    def inverse(self) -> list[int]:
        """The position of each token."""
        return self._native.inverse()

    def block_of(self, token: int) -> int:
        """The block of keys that a token, by its raster number, lies in.

        Raises:
            IndexError: there is no such token.
            TypeError: the token is no whole number.
        """
        if not isinstance(token, Integral):
            raise TypeError(f"token is {token!r}, of type {type(token).__name__}, needed the number of a token")
        if not 0 <= token < self._tokens:
            raise IndexError(f"there is no token {token}, tokens are numbered 0 to {self._tokens - 1}")
        return self._native.block_of(token)

    def regroup(self, tensor: Array, dim: int) -> Array:
        """The tensor with dimension `dim`, which counts tokens in raster order, in the new order.

        Takes torch tensors of any device and dtype and numpy arrays; the result is a new tensor. On a GPU, f16, bf16 and f32 tensors of
        `[…, tokens, d]` with up to two dimensions before the tokens are moved by a kernel of Tilewright, the rest by PyTorch.

        Raises:
            ValueError: the dimension has another number of tokens.
        """
        return self._moved(tensor, dim, restore=False)

    def restore(self, tensor: Array, dim: int) -> Array:
        """The inverse of `regroup`: the dimension back in raster order."""
        return self._moved(tensor, dim, restore=True)

    def _moved(self, tensor: Any, dim: int, restore: bool) -> Any:
        if not hasattr(tensor, "shape"):
            raise TypeError(
                f"the tensor is of type {type(tensor).__name__}, needed a torch.Tensor or a numpy array: convert it first"
            )
        shape = tuple(tensor.shape)
        if not isinstance(dim, Integral):
            raise TypeError(f"dim is {dim!r}, of type {type(dim).__name__}, needed the number of a dimension")
        dim = int(dim)
        if not -len(shape) <= dim < len(shape):
            raise ValueError(f"dim is {dim}, needed one of the {len(shape)} dimensions of a tensor of shape {shape}")
        dim %= len(shape)
        if shape[dim] != self._tokens:
            raise ValueError(
                f"dimension {dim} of a tensor of shape {shape} has {shape[dim]} tokens, needed {self._tokens} of {self!r}: make the grid of "
                "the tensor's own frames, rows and columns"
            )
        torch = torch_of(tensor)
        if torch is None:
            return tensor.take(self.inverse() if restore else self.order(), axis=dim)
        if _is_traced(torch, tensor):
            grid, tile, before, after, block_size = self._sizes
            return torch.ops.tilewright.regroup(tensor, dim, grid, tile, before, after, block_size, restore)
        return moved(torch, self, tensor, dim, restore, kernel=not _is_followed(torch, tensor))


def moved(torch: Any, grid: TokenGrid, tensor: Any, dim: int, restore: bool, kernel: bool) -> Any:
    """The tensor with dimension `dim`, which has as many tokens as the grid, in the new order or back in raster order; with `kernel` by
    Tilewright's own where that takes it."""
    if kernel and _suits_kernel(torch, tensor, dim):
        out = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        grid._native.move(tensor, out, restore)
        return out
    return tensor.index_select(dim, _index(torch, tensor.device, grid, restore))


def _is_traced(torch: Any, tensor: Any) -> bool:
    """Whether somebody looks at the operators: a compiler, an exporter, a dispatch mode such as that of fake tensors. They are shown one
    operator, with the sizes as its arguments, instead of a list of all tokens."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or isinstance(tensor, torch._subclasses.FakeTensor)
    )


def _is_followed(torch: Any, tensor: Any) -> bool:
    """Whether autograd, forward mode, torch.func or a subclass follow the tensor: index_select has what they need, the kernel has not."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return True
    if torch.is_grad_enabled() and tensor.requires_grad:
        return True
    if torch._C._functorch.maybe_current_level() is not None:
        return True
    forward_ad = torch.autograd.forward_ad
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def _suits_kernel(torch: Any, tensor: Any, dim: int) -> bool:
    return (
        tensor.is_cuda
        and tensor.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and 2 <= tensor.dim() <= 4
        and dim == tensor.dim() - 2
        and tensor.stride(-1) == 1
        and tensor.numel() > 0
    )


# Where each entry of the result comes from. They stay for the life of the process, as the kernel's lists do: a captured graph reads them
# when it is replayed.
_INDICES: dict[tuple[_Sizes, Any, bool], Any] = {}


def _index(torch: Any, device: Any, grid: TokenGrid, restore: bool) -> Any:
    key = (grid._sizes, device, restore)
    found = _INDICES.get(key)
    if found is None:
        entries = grid.inverse() if restore else grid.order()
        # A fake tensor would stay fake, one made within a transform of torch.func would stay wrapped, and an inference tensor could not be
        # saved for a backward.
        with (
            torch.utils._python_dispatch._disable_current_modes(),
            torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack(),
            torch.inference_mode(False),
        ):
            found = _INDICES[key] = torch.tensor(entries, dtype=torch.int64, device=device)
    return found


@functools.lru_cache(maxsize=64)
def grid_of(
    grid: tuple[int, int, int], tile: tuple[int, int, int], before: int, after: int, block_size: tuple[int, int]
) -> TokenGrid:
    """The grid of these sizes."""
    return TokenGrid(grid, tile, before=before, after=after, block_size=block_size)


@functools.lru_cache(maxsize=64)
def _native_of(*sizes: Any) -> _native.TokenGrid:
    return _native.TokenGrid(*sizes)


def _checked(*sizes: Any) -> tuple[tuple[int, int, int], int]:
    """The tile, which may have been left to the default, and the number of tokens."""
    native = _native_of(*sizes)
    return tuple(native.tile), len(native)  # type: ignore[return-value]


# TorchDynamo calls it instead of tracing it, so that grids can be made in compiled functions: see `_torch._is_bound`.
_checked._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _three(what: str, sizes: Sequence[int]) -> tuple[int, int, int]:
    found = tuple(sizes) if hasattr(sizes, "__iter__") else (sizes,)
    if len(found) != 3 or not all(isinstance(size, Integral) for size in found):
        raise ValueError(f"{what} is {found}, needed three sizes that are whole numbers: t, h and w")
    if not all(0 <= size < 2**31 for size in found):
        raise ValueError(f"{what} is {found}, needed sizes t, h and w of at least 1 and below 2³¹")
    t, h, w = (_constant(size) for size in found)
    return t, h, w


def _constant(size: Any) -> int:
    """The size as Python's own number. TorchDynamo makes it a constant, and compiles again for another: a grid has no symbolic sizes."""
    return len(range(int(size)))
