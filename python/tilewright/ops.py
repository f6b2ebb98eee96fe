"""The operators of PyTorch: `torch.ops.tilewright.{sparse_attention, block_mask, attention}`.

Importing this module registers them, with kernels for CUDA and CPU tensors, fake kernels (shapes alone, for `torch.compile` and
`torch.export`), autocast, and an autograd entry that refuses, for there are no backward kernels yet.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _native
from ._native import Error

_OPTIONS = "float? scale, int score_mod, int mask_mod, bool enable_gqa"

_SCHEMAS = {
    "sparse_attention": "(Tensor q, Tensor k, Tensor v, float? top_k, float? top_p, int block_q, int block_kv, "
    f"{_OPTIONS}) -> (Tensor, Tensor)",
    "block_mask": "(Tensor q, Tensor k, float? top_k, float? top_p, int block_q, int block_kv, float? scale, "
    "int mask_mod, bool enable_gqa) -> Tensor[]",
    "attention": "(Tensor q, Tensor k, Tensor v, Tensor kv_num_blocks, Tensor kv_indices, Tensor? full_kv_num_blocks, "
    f"Tensor? full_kv_indices, int block_q, int block_kv, {_OPTIONS}) -> (Tensor, Tensor)",
}

# How many of an operator's first arguments are q, k and v.
_HALF = {"sparse_attention": 3, "block_mask": 2, "attention": 3}

_library = torch.library.Library("tilewright", "DEF")


# ---- kernels -------------------------------------------------------------------------------------------------------


def _sparse_attention(q, k, v, top_k, top_p, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa):
    return _native.sparse_attention(
        q, k, v, top_k, top_p, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa, False, True
    )


def _block_mask(q, k, top_k, top_p, block_q, block_kv, scale, mask_mod, enable_gqa):
    return _native.block_mask(q, k, top_k, top_p, block_q, block_kv, scale, mask_mod, enable_gqa)


def _attention(
    q,
    k,
    v,
    kv_num_blocks,
    kv_indices,
    full_kv_num_blocks,
    full_kv_indices,
    block_q,
    block_kv,
    scale,
    score_mod,
    mask_mod,
    enable_gqa,
):
    return _native.attention(
        q,
        k,
        v,
        kv_num_blocks,
        kv_indices,
        full_kv_num_blocks,
        full_kv_indices,
        block_q,
        block_kv,
        scale,
        score_mod,
        mask_mod,
        enable_gqa,
        False,
    )


# ---- shapes alone --------------------------------------------------------------------------------------------------


def _fake_attention(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """`out` lies in memory as q does; `lse` is contiguous."""
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _fake_block_mask(
    q: Tensor,
    k: Tensor,
    top_k: Optional[float],
    top_p: Optional[float],
    block_q: int,
    block_kv: int,
    scale: Optional[float],
    mask_mod: int,
    enable_gqa: bool,
) -> list[Tensor]:
    batch, heads = q.shape[0], q.shape[1]
    # As `BlockMask` writes it: a symbolic size is compared with the size of these lists, expression by expression.
    q_blocks, kv_blocks = -(-q.shape[2] // block_q), -(-k.shape[2] // block_kv)
    lists = []
    for _ in range(2 if mask_mod else 1):
        for rows, width in ((q_blocks, kv_blocks), (kv_blocks, q_blocks)):
            lists.append(q.new_empty((batch, heads, rows), dtype=torch.int32))
            lists.append(q.new_empty((batch, heads, rows, width), dtype=torch.int32))
    return lists


# ---- autograd ------------------------------------------------------------------------------------------------------


def no_backward() -> Error:
    """What a call that needs gradients raises."""
    return Error(
        "a gradient is wanted, and the backward kernels do not exist yet: call under torch.no_grad() or "
        "torch.inference_mode(), or detach q, k and v"
    )


def no_forward_mode() -> Error:
    """What a call over tensors with tangents raises; torch.no_grad does not switch those off."""
    return Error(
        "a forward-mode derivative is wanted, and the derivative kernels do not exist yet: detach q, k and v, or call outside of "
        "torch.func.jvp, jacfwd and dual levels"
    )


def refuse_derivatives(*tensors: Tensor) -> None:
    """Raises when a derivative through these tensors is wanted, by autograd, by torch.func or in forward mode.

    Before the operators it sees what torch.func wraps in a vmap; their autograd entry serves who calls them directly.
    """
    tensors = tuple(_of_all_cases(tensor) for tensor in tensors)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise no_backward()
    if any(has_tangent(tensor) for tensor in tensors):
        raise no_forward_mode()


def _of_all_cases(tensor: Tensor) -> Tensor:
    """The tensor that a vmap takes apart, for its cases do not tell what follows the whole."""
    functorch = torch._C._functorch
    while functorch.is_batchedtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation follows the tensor."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def _autograd(name: str) -> Any:
    """Refuses in the forward where a derivative is wanted: better than a backward that fails an hour later."""
    count = _HALF[name]

    def check(*args: Any) -> Any:
        # A selection carries no derivative: its lists are integers.
        if name != "block_mask":
            refuse_derivatives(*args[:count])
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.tilewright, name).default(*args)

    return check


# ---- autocast ------------------------------------------------------------------------------------------------------


def _autocast(name: str, device_type: str, key: str) -> Any:
    """Casts q, k and v to the dtype of the region, as `scaled_dot_product_attention` does."""
    count = _HALF[name]
    below = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(*args: Any) -> Any:
        operator = getattr(torch.ops.tilewright, name).default
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(below):
            return operator(*(cast_input(arg, dtype) for arg in args[:count]), *args[count:])

    return cast


def cast_input(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating tensor in an autocast region's dtype; float64 is left alone, as everywhere in autocast."""
    castable = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if castable else tensor


def _register() -> None:
    kernels = {"sparse_attention": _sparse_attention, "block_mask": _block_mask, "attention": _attention}
    fakes = {"sparse_attention": _fake_attention, "block_mask": _fake_block_mask, "attention": _fake_attention}
    for name, schema in _SCHEMAS.items():
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
        for device in ("CPU", "CUDA"):
            _library.impl(name, kernels[name], device)
            _library.impl(name, _autocast(name, device.lower(), f"Autocast{device}"), f"Autocast{device}")
        torch.library.register_fake(f"tilewright::{name}", fakes[name], lib=_library)
        _library.impl(name, _autograd(name), "Autograd")


_register()
