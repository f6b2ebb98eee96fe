"""Types of the public functions, for type checkers: nothing here imports PyTorch or numpy when a program runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Optional, Protocol, TypedDict, TypeVar, Union

if TYPE_CHECKING:
    import numpy
    import torch

    from .functions import DeviceFunction

    #: q, k and v of a call are all tensors of PyTorch or all arrays of numpy, and so is what it returns.
    Array = TypeVar("Array", torch.Tensor, numpy.ndarray[Any, Any])
else:
    Array = TypeVar("Array")

#: The order of the dimensions of q, k, v and out: batch, heads, sequence and head dimension by their first letters.
Layout = Literal["BHSD", "BSHD"]


#: What stands for dropped blocks: nothing, the tail of a block, or that of a row, with the keys that one of its means is of.
Tail = Union[None, Literal["block", "row"], tuple[Literal["row"], int]]


#: What a block is scored by: the mean of its keys, or the best of the means of four neighbouring ones.
Scores = Literal["means", "keys"]


class FlexBlockMask(Protocol):
    """What is read of a `BlockMask` of `torch.nn.attention.flex_attention`."""

    kv_num_blocks: Any
    kv_indices: Any
    full_kv_num_blocks: Any
    full_kv_indices: Any
    seq_lengths: Any
    BLOCK_SIZE: Any
    mask_mod: Any


class CallOptions(TypedDict, total=False):
    """The options that every call of attention has."""

    block_size: tuple[int, int]
    scale: Optional[float]
    is_causal: bool
    enable_gqa: bool
    layout: Layout
    score_mod: Optional[DeviceFunction]
    mask_mod: Optional[DeviceFunction]
    tail: Tail


class SelectionOptions(CallOptions, total=False):
    """Those of a call that selects blocks, or takes them from a mask."""

    top_k: Optional[float]
    top_p: Optional[float]
    mask: Any
    scores: Optional[Scores]
