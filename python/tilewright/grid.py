"""Token grids: the tokens of a video regrouped so that a sparse block is a compact piece of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from . import _native
from ._torch import torch_of
from .mask import checked_pair


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
        for what, tokens in (("before", before), ("after", after)):
            if not isinstance(tokens, int) or tokens < 0:
                raise ValueError(f"{what} is {tokens!r}, needed a number of tokens of at least 0")
        self._native = _native.TokenGrid(sizes, tile, before, after, checked_pair(block_size))
        self._indices: dict[Any, Any] = {}

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along t, h and w."""
        return tuple(self._native.grid)

    @property
    def tile(self) -> tuple[int, int, int]:
        """The tile along t, h and w."""
        return tuple(self._native.tile)

    def __len__(self) -> int:
        """All tokens, those before and after the grid included."""
        return len(self._native)

    def __repr__(self) -> str:
        return f"TokenGrid({self._native.description}, tile={self.tile})"

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
        """
        return self._native.block_of(token)

    def regroup(self, tensor: Any, dim: int) -> Any:
        """The tensor with dimension `dim`, which counts tokens in raster order, in the new order.

        Takes torch tensors of any device and dtype and numpy arrays; the result is a new tensor. On a GPU, f16, bf16 and f32 tensors of
        `[…, tokens, d]` with up to two dimensions before the tokens are moved by a kernel of Tilewright, the rest by PyTorch.

        Raises:
            ValueError: the dimension has another number of tokens.
        """
        return self._moved(tensor, dim, restore=False)

    def restore(self, tensor: Any, dim: int) -> Any:
        """The inverse of `regroup`: the dimension back in raster order."""
        return self._moved(tensor, dim, restore=True)

    def _moved(self, tensor: Any, dim: int, restore: bool) -> Any:
        shape = tuple(tensor.shape)
        if not -len(shape) <= dim < len(shape):
            raise ValueError(f"dim is {dim}, needed one of the {len(shape)} dimensions of a tensor of shape {shape}")
        dim %= len(shape)
        if shape[dim] != len(self):
            raise ValueError(
                f"dimension {dim} of a tensor of shape {shape} has {shape[dim]} tokens, needed {len(self)} of {self!r}: make the grid of "
                "the tensor's own frames, rows and columns"
            )
        torch = torch_of(tensor)
        if torch is None:
            return tensor.take(self._list(None, "numpy", restore), axis=dim)
        if self._suits_kernel(torch, tensor, dim):
            out = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
            self._native.move(tensor, out, restore)
            return out
        return tensor.index_select(dim, self._list(torch, tensor.device, restore))

    @staticmethod
    def _suits_kernel(torch: Any, tensor: Any, dim: int) -> bool:
        if not tensor.is_cuda or torch.compiler.is_compiling() or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return False
        # The kernel has no formula for autograd, forward mode and torch.func, whose tensors have no memory; index_select has.
        if torch.is_grad_enabled() and tensor.requires_grad:
            return False
        if torch._C._functorch.maybe_current_level() is not None:
            return False
        forward_ad = torch.autograd.forward_ad
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
            return False
        return (
            tensor.dtype in (torch.float16, torch.bfloat16, torch.float32)
            and 2 <= tensor.dim() <= 4
            and dim == tensor.dim() - 2
            and tensor.stride(-1) == 1
            and tensor.numel() > 0
        )

    def _list(self, torch: Any, device: Any, restore: bool) -> Any:
        """Where each entry of the result comes from, on `device`; made once."""
        key = (device, restore)
        found = self._indices.get(key)
        if found is None:
            entries = self.inverse() if restore else self.order()
            if torch is None:
                found = entries
            else:
                with torch.inference_mode(False):  # an inference tensor could not be saved for a backward
                    found = torch.tensor(entries, dtype=torch.int64, device=device)
            self._indices[key] = found
        return found


def _three(what: str, sizes: Sequence[int]) -> tuple[int, int, int]:
    sizes = tuple(sizes)
    if len(sizes) != 3 or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError(f"{what} is {sizes}, needed three sizes: t, h and w")
    return sizes
