"""The operators of PyTorch: `torch.ops.tilewright.{sparse_attention, block_mask, attention, attention_backward, regroup}`.

Importing this module registers them, with kernels for CUDA and CPU tensors, fake kernels (shapes alone, for `torch.compile` and
`torch.export`), autocast and autograd.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _native
from ._native import Error
from .grid import grid_of, moved

_OPTIONS = "float? scale, int score_mod, int mask_mod, bool enable_gqa"

# What stands for dropped blocks, as `tail_number` of mask.py has it, and the bits of those blocks, the words of all rows of a head in one
# dimension: one of their own would often be 1, and an exported program would hold on to that.
_TAIL = "Tensor? dropped=None, int tail=0"

_SCHEMAS = {
    "sparse_attention": "(Tensor q, Tensor k, Tensor v, float? top_k, float? top_p, int block_q, int block_kv, "
    f"{_OPTIONS}, int tail=0, bool by_keys=False) -> (Tensor, Tensor)",
    "block_mask": "(Tensor q, Tensor k, float? top_k, float? top_p, int block_q, int block_kv, float? scale, "
    "int mask_mod, bool enable_gqa, bool dropped=False, bool by_keys=False) -> Tensor[]",
    "attention": "(Tensor q, Tensor k, Tensor v, Tensor kv_num_blocks, Tensor kv_indices, Tensor? full_kv_num_blocks, "
    f"Tensor? full_kv_indices, int block_q, int block_kv, {_OPTIONS}, {_TAIL}) -> (Tensor, Tensor)",
    "attention_backward": "(Tensor d_out, Tensor? d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    "Tensor kv_num_blocks, Tensor kv_indices, Tensor? full_kv_num_blocks, Tensor? full_kv_indices, int block_q, int block_kv, "
    f"{_OPTIONS}, {_TAIL}) -> (Tensor, Tensor, Tensor)",
    "regroup": "(Tensor tensor, int dim, int[] grid, int[] tile, int before, int after, int[] block_size, bool restore) -> Tensor",
}

# How many of an operator's first arguments are q, k and v.
_HALF = {"sparse_attention": 3, "block_mask": 2, "attention": 3}

_library = torch.library.Library("tilewright", "DEF")


# ---- kernels -------------------------------------------------------------------------------------------------------


# PyTorch leaves out trailing arguments that have their defaults.
def _sparse_attention(
    q, k, v, top_k, top_p, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa, tail=0, by_keys=False
):
    return _native.sparse_attention(
        q, k, v, top_k, top_p, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa, False, True, tail, by_keys
    )


def _block_mask(q, k, top_k, top_p, block_q, block_kv, scale, mask_mod, enable_gqa, dropped=False, by_keys=False):
    lists = _native.block_mask(q, k, top_k, top_p, block_q, block_kv, scale, mask_mod, enable_gqa, dropped, by_keys)
    return [*lists[:-1], lists[-1].flatten(2)] if dropped else lists


def _by_row(dropped, q, k, block_q, block_kv):
    """The bits as the native functions take them, with a dimension for a row's words; others than those of these sizes stay what they are."""
    if dropped is None or dropped.dim() != 3 or q.dim() != 4 or k.dim() != 4:
        return dropped
    rows, words = -(-q.shape[2] // block_q), -(-k.shape[2] // (32 * block_kv))
    fits = dropped.shape[2] == rows * words
    return dropped.reshape(*dropped.shape[:2], rows, words) if fits else dropped


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
    dropped=None,
    tail=0,
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
        _by_row(dropped, q, k, block_q, block_kv),
        tail,
    )


def _attention_backward(d_out, d_lse, *args):
    if d_out.is_cuda:
        # Autograd's tensors lie as they like: a sum's gradient is one element, expanded.
        d_out = d_out if _rows_are_readable(d_out) else d_out.clone(memory_format=torch.contiguous_format)
        d_lse = d_lse if d_lse is None or d_lse.stride(-1) == 1 else d_lse.contiguous()
    if len(args) > 15:
        (q, k), (block_q, block_kv) = args[:2], args[9:11]
        args = (*args[:15], _by_row(args[15], q, k, block_q, block_kv), *args[16:])
    return _native.attention_backward(d_out, d_lse, *args)


def _regroup(tensor, dim, grid, tile, before, after, block_size, restore):
    """What `TokenGrid` does while something traces it; the dimension has the grid's number of tokens."""
    order = grid_of(tuple(grid), tuple(tile), before, after, tuple(block_size))
    return moved(torch, order, tensor, dim, restore, kernel=True)


def _rows_are_readable(tensor: Tensor) -> bool:
    """Whether kernels can read rows 16 bytes at a time."""
    aligned = tensor.data_ptr() % 16 == 0 and all(stride % 8 == 0 for stride in tensor.stride()[:-1])
    return aligned and tensor.stride(-1) == 1


# ---- shapes alone --------------------------------------------------------------------------------------------------


def _check_devices(q: Tensor, *operands: Any) -> None:
    """PyTorch calls these kernels where any tensor is on "meta", whatever the others are on: what they return has no values then."""
    for operand in operands:
        if isinstance(operand, Tensor) and operand.device != q.device:
            raise ValueError(
                f"q is on {q.device}, another tensor of the call (of shape {tuple(operand.shape)}) is on {operand.device}: move them to "
                "one device with `.to(q.device)`"
            )


def _fake_attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """`out` lies in memory as q does, or is contiguous where v has another last dimension; `lse` is contiguous."""
    _check_devices(q, k, v, *rest)
    out = torch.empty_like(q) if v.shape[3] == q.shape[3] else q.new_empty((*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


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
    dropped: bool = False,
    by_keys: bool = False,
) -> list[Tensor]:
    _check_devices(q, k)
    batch, heads = q.shape[0], q.shape[1]
    # As `BlockMask` writes it: a symbolic size is compared with the size of these lists, expression by expression.
    q_blocks, kv_blocks = -(-q.shape[2] // block_q), -(-k.shape[2] // block_kv)
    lists = []
    for _ in range(2 if mask_mod else 1):
        for rows, width in ((q_blocks, kv_blocks), (kv_blocks, q_blocks)):
            lists.append(q.new_empty((batch, heads, rows), dtype=torch.int32))
            lists.append(q.new_empty((batch, heads, rows, width), dtype=torch.int32))
    if dropped:
        lists.append(q.new_empty((batch, heads, q_blocks * -(-kv_blocks // 32)), dtype=torch.int32))
    return lists


def _fake_attention_backward(
    d_out: Tensor, d_lse: Optional[Tensor], q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple:
    _check_devices(q, d_out, d_lse, k, v, *rest)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _fake_regroup(tensor: Tensor, *_: Any) -> Tensor:
    return tensor.new_empty(tensor.shape)


# ---- autograd ------------------------------------------------------------------------------------------------------


def no_functional_gradient() -> Error:
    """What a call within torch.func.grad, vjp, jacrev and their like raises."""
    return Error(
        "a gradient of torch.func is wanted, whose transforms the operators do not take: use torch.autograd, as in "
        "loss.backward() or torch.autograd.grad(loss, inputs)"
    )


def no_second_derivative() -> Error:
    """What a backward that is differentiated itself raises."""
    return Error(
        "a second derivative is wanted, and attention has none here: call backward() without create_graph, or detach the gradients"
    )


def no_forward_mode() -> Error:
    """What a call over tensors with tangents raises; torch.no_grad does not switch those off."""
    return Error(
        "a forward-mode derivative is wanted, and the derivative kernels do not exist yet: detach q, k and v, or call outside of "
        "torch.func.jvp, jacfwd and dual levels"
    )


def refuse_derivatives(*tensors: Tensor) -> None:
    """Raises when a derivative through these tensors is wanted that there is none of: in forward mode, or of torch.func.

    Before the operators it sees what torch.func wraps in a vmap; their autograd entries serve who calls them directly.
    """
    tensors = tuple(_of_all_cases(tensor) for tensor in tensors)
    if any(has_tangent(tensor) for tensor in tensors):
        raise no_forward_mode()
    if not _wants_gradient(*tensors):
        return
    if any(torch._C._functorch.is_gradtrackingtensor(tensor) for tensor in tensors):
        raise no_functional_gradient()


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _of_all_cases(tensor: Tensor) -> Tensor:
    """The tensor that a vmap takes apart, for its cases do not tell what follows the whole."""
    functorch = torch._C._functorch
    while functorch.is_batchedtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation follows the tensor."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def _below(name: str, *args: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.tilewright, name).default(*args)


def _sparse_attention_autograd(
    q, k, v, top_k, top_p, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa, tail=0, by_keys=False
):
    """Where a gradient is wanted, the selection and the attention apart: the backward needs the blocks that were kept."""
    refuse_derivatives(q, k, v)
    if not _wants_gradient(q, k, v):
        options = (top_k, top_p, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa, tail, by_keys)
        return _below("sparse_attention", q, k, v, *options)
    lists = _block_mask_autograd(q, k, top_k, top_p, block_q, block_kv, scale, mask_mod, enable_gqa, tail != 0, by_keys)
    dropped = lists[-1] if tail != 0 else None
    full = lists[4:6] if mask_mod != 0 else (None, None)
    return torch.ops.tilewright.attention.default(
        q, k, v, *lists[:2], *full, block_q, block_kv, scale, score_mod, mask_mod, enable_gqa, dropped, tail
    )


def _block_mask_autograd(*args: Any) -> Any:
    """A selection carries no derivative: its lists are integers."""
    return _below("block_mask", *args)


def _attention_backward_autograd(*args: Any) -> Any:
    if _wants_gradient(*(arg for arg in args if isinstance(arg, Tensor))):
        raise no_second_derivative()
    return _below("attention_backward", *args)


def _setup_attention(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    """Runs in a forward that wants a gradient: better to refuse here than in a backward an hour later."""
    q, k, v, *lists = inputs[:7]
    refuse_derivatives(q, k, v)
    ctx.set_materialize_grads(False)
    *options, dropped, tail = inputs[7:]
    ctx.save_for_backward(q, k, v, *output, *lists, dropped)
    ctx.options, ctx.tail = options, tail
    # Their captures are needed again, when the caller may have let go of them.
    score_mod, mask_mod = inputs[10:12]
    ctx.functions = [_native.device_function(number) for number in (score_mod, mask_mod)]


def _backward_of_attention(ctx: Any, d_out: Optional[Tensor], d_lse: Optional[Tensor]) -> tuple:
    q, k, v, out, lse, *lists, dropped = ctx.saved_tensors
    rest = (None,) * 12
    if d_out is None and d_lse is None:
        return None, None, None, *rest
    d_out = torch.zeros_like(out) if d_out is None else d_out
    arguments = (*lists, *ctx.options, dropped, ctx.tail)
    gradients = torch.ops.tilewright.attention_backward(d_out, d_lse, q, k, v, out, lse, *arguments)
    return *gradients, *rest


def _setup_regroup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.arguments = inputs[1:]


def _backward_of_regroup(ctx: Any, d_out: Tensor) -> tuple:
    """The way back is the inverse order."""
    *sizes, restore = ctx.arguments
    return torch.ops.tilewright.regroup(d_out, *sizes, not restore), *(None,) * len(ctx.arguments)


def _vmap_of_regroup(info: Any, in_dims: tuple, tensor: Tensor, dim: int, *arguments: Any) -> tuple[Tensor, int]:
    return torch.ops.tilewright.regroup(tensor.movedim(in_dims[0], 0), dim + 1, *arguments), 0


def _vmap_of_block_mask(info: Any, in_dims: tuple, *arguments: Any) -> tuple[list[Tensor], list[int]]:
    """Case by case: PyTorch's own fallback takes no operator that returns a list."""
    dims = in_dims[: len(arguments)]
    masks = []
    for case in range(info.batch_size):
        taken = [x if dim is None else x.select(dim, case) for x, dim in zip(arguments, dims)]
        masks.append(torch.ops.tilewright.block_mask(*taken))
    lists = [torch.stack(each) for each in zip(*masks)]
    return lists, [0] * len(lists)


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
    kernels = {
        "sparse_attention": (_sparse_attention, _fake_attention),
        "block_mask": (_block_mask, _fake_block_mask),
        "attention": (_attention, _fake_attention),
        "attention_backward": (_attention_backward, _fake_attention_backward),
        "regroup": (_regroup, _fake_regroup),
    }
    for name, (kernel, fake) in kernels.items():
        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
        _library.define(name + _SCHEMAS[name], tags=tags)
        for device in ("CPU", "CUDA"):
            _library.impl(name, kernel, device)
            if name in _HALF:
                _library.impl(name, _autocast(name, device.lower(), f"Autocast{device}"), f"Autocast{device}")
        torch.library.register_fake(f"tilewright::{name}", fake, lib=_library)
    _library.impl("sparse_attention", _sparse_attention_autograd, "Autograd")
    _library.impl("block_mask", _block_mask_autograd, "Autograd")
    _library.impl("attention_backward", _attention_backward_autograd, "Autograd")
    torch.library.register_autograd(
        "tilewright::attention", _backward_of_attention, setup_context=_setup_attention, lib=_library
    )
    torch.library.register_autograd(
        "tilewright::regroup", _backward_of_regroup, setup_context=_setup_regroup, lib=_library
    )
    torch.library.register_vmap("tilewright::regroup", _vmap_of_regroup, lib=_library)
    torch.library.register_vmap("tilewright::block_mask", _vmap_of_block_mask, lib=_library)


_register()
