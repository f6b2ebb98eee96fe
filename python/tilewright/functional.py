"""Attention as functions: `sparse_attention`, `block_mask`, `attention`."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Optional, Union, overload

from . import _native
from ._torch import torch_of
from ._typing import Array, CallOptions, FlexBlockMask, Layout, Scores, SelectionOptions, Tail
from .mask import BLOCK_SIZES, BlockMask, as_block_mask, checked_flag, checked_pair, function_numbers, scored_by_keys, tail_number

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .functions import DeviceFunction

_LAYOUTS = ("BHSD", "BSHD")


@overload
def sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    return_lse: Literal[False] = False,
    return_mask: Literal[False] = False,
    **options: Unpack[SelectionOptions],
) -> Array: ...
@overload
def sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    return_lse: Literal[True],
    return_mask: Literal[False] = False,
    **options: Unpack[SelectionOptions],
) -> tuple[Array, Array]: ...
@overload
def sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    return_lse: Literal[False] = False,
    return_mask: Literal[True],
    **options: Unpack[SelectionOptions],
) -> tuple[Array, BlockMask[Array]]: ...
@overload
def sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    return_lse: Literal[True],
    return_mask: Literal[True],
    **options: Unpack[SelectionOptions],
) -> tuple[Array, Array, BlockMask[Array]]: ...
@overload
def sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    return_lse: bool = False,
    return_mask: bool = False,
    **options: Unpack[SelectionOptions],
) -> Any: ...
def sparse_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    top_k: Optional[float] = 0.03,
    top_p: Optional[float] = 0.2,
    block_size: tuple[int, int] = (128, 64),
    mask: Any = None,
    scale: Optional[float] = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
    layout: Layout = "BHSD",
    return_lse: bool = False,
    return_mask: bool = False,
    score_mod: Any = None,
    mask_mod: Any = None,
    tail: Tail = None,
    scores: Optional[Scores] = None,
) -> Any:
    """Attention over the key blocks that top-k or top-p selects for each block of queries.

    For every run of `block_size[0]` queries the key blocks of `block_size[1]` keys are ranked by the softmax of the products of
    block means; the best `ceil(top_k · n)` of the `n` blocks are kept, and further ones until their share of the softmax reaches
    `top_p`. Attention is computed over the kept blocks alone (SpargeAttention2, arXiv 2602.13515), or with a `tail` over means of the
    dropped ones too.

    Args:
        q: float16 or bfloat16, `[batch, heads, seq_q, d]` ("BHSD") or `[batch, seq_q, heads, d]` ("BSHD"); unit stride
            on d, any other strides: nothing is copied. `d` is a multiple of 8 up to 256. A CUDA tensor runs on its GPU, on
            PyTorch's current stream; a CPU tensor or a numpy array on the CPU executor.
        k: `[batch, kv_heads, seq_kv, d]`, the layout, dtype and device of q.
        v: as k, with a last dimension of its own where wanted (192 and 128 of multi-head latent attention).
        top_k: the share of blocks kept at least, in (0, 1]; None for none.
        top_p: the share of the softmax kept at least, in (0, 1]; None for none. With both None nothing is selected and every
            block that the mask function admits is kept.
        block_size: queries and keys of a block: a pair of `BLOCK_SIZES`.
        mask: attend to these blocks instead of selecting some: what `attention` takes. `top_k`, `top_p` and
            `scores` are not looked at then.
        scale: the factor of the products of q and k; `1 / sqrt(d)` when None.
        is_causal: query i sees the keys up to position i (top-left aligned, as `scaled_dot_product_attention`).
        enable_gqa: q may have a multiple of the heads of k and v.
        layout: the order of the dimensions of q, k, v and out: "BHSD" or "BSHD".
        return_lse: return the log-sum-exp of the scores too: of the kept ones, and of the tail's.
        return_mask: return the `BlockMask` too.
        score_mod: a device function of `tilewright.score_mod` that changes each scaled score.
        mask_mod: a device function of `tilewright.mask_mod` that says which keys a query sees.
        tail: what stands for the dropped blocks, each of which takes part in the softmax as one key with the mean of its values:

            - None: nothing, their keys take no part;
            - "block": the mean key of each, scored by the mean query of a block of queries;
            - "row": means of 128 keys (or the next multiple of `block_size[1]`), scored by every query;
            - ("row", keys): the same of so many keys, a multiple of `block_size[1]`.

            A mean weighs as many keys as are dropped of it. Blocks in which the mask function forbids a key have no part in any. Nothing
            changes for a query none of whose blocks is dropped. A tail together with score_mod is refused.
        scores: what a block is scored by, beside the mean query of a block of queries: "means", the mean of its keys; or "keys", the
            best of the means of four neighbouring keys each, which finds a few keys that a mean hides. None is "keys" with a tail, where
            these are the blocks that their means do not stand for, and "means" without.

    Returns:
        `out`, with the shape of q but the last dimension of v, the dtype and layout of q; with `return_lse` and `return_mask` a
        tuple `(out, lse, mask)` of what was asked for. `lse` is float32 `[batch, heads, seq_q]`, natural logarithm. A query with nothing to attend to gets
        `out` 0 and `lse` -inf.

    Raises:
        TypeError: a dtype other than float16 and bfloat16, or dtypes that differ.
        ValueError: shapes, devices or options that do not fit.
        tilewright.Error: a derivative is wanted in forward mode or of torch.func, or the GPU cannot be used.

    Gradients flow through out and lse into q, k and v, over the kept blocks and the tail; the selection itself carries none, and what
    functions capture is constant.
    """
    is_causal, enable_gqa = checked_flag("is_causal", is_causal), checked_flag("enable_gqa", enable_gqa)
    return_lse, return_mask = checked_flag("return_lse", return_lse), checked_flag("return_mask", return_mask)
    score, masked = function_numbers(score_mod, mask_mod, is_causal)
    torch = torch_of(q)
    top_k, top_p, scale = _number("top_k", top_k), _number("top_p", top_p), _number("scale", scale)
    if mask is None and not return_mask:
        block_q, block_kv = _block_size(block_size)
        tailed = 0 if tail is None else tail_number(tail, block_kv, score_mod)
        by_keys = scored_by_keys(scores, tail)
        if torch is None or _is_plain(torch, q, k, v):
            if layout not in _LAYOUTS:
                raise _wrong_layout(layout)
            out, lse = _native.sparse_attention(
                q,
                k,
                v,
                top_k,
                top_p,
                block_q,
                block_kv,
                scale,
                score,
                masked,
                enable_gqa,
                layout == "BSHD",
                return_lse,
                tailed,
                by_keys,
            )
            return (out, lse) if return_lse else out
        _check_operands(torch, q, k, v)
        q, k, v = (_heads_first(tensor, layout) for tensor in (q, k, v))
        out, lse = torch.ops.tilewright.sparse_attention(
            q, k, v, top_k, top_p, block_q, block_kv, scale, score, masked, enable_gqa, tailed, by_keys
        )
        out = _heads_first(out, layout)
        return (out, lse) if return_lse else out
    if mask is None:
        mask = block_mask(
            q,
            k,
            top_k=top_k,
            top_p=top_p,
            block_size=block_size,
            scale=scale,
            is_causal=is_causal,
            enable_gqa=enable_gqa,
            layout=layout,
            mask_mod=mask_mod,
            scores="keys" if scored_by_keys(scores, tail) else "means",
        )
        is_causal, mask_mod = False, None
    else:
        mask = as_block_mask(mask, block_size, _seqs(q, k, layout))
    out, lse = attention(
        q,
        k,
        v,
        mask,
        block_size=block_size,
        scale=scale,
        is_causal=is_causal,
        enable_gqa=enable_gqa,
        layout=layout,
        return_lse=True,
        score_mod=score_mod,
        mask_mod=mask_mod,
        tail=tail,
    )
    extra = ((lse,) if return_lse else ()) + ((mask,) if return_mask else ())
    return (out, *extra) if extra else out


def block_mask(
    q: Array,
    k: Array,
    *,
    top_k: Optional[float] = 0.03,
    top_p: Optional[float] = 0.2,
    block_size: tuple[int, int] = (128, 64),
    scale: Optional[float] = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
    layout: Layout = "BHSD",
    mask_mod: Optional[DeviceFunction] = None,
    dropped: bool = True,
    scores: Scores = "means",
) -> BlockMask[Array]:
    """The blocks that `sparse_attention` would keep; arguments and errors as there.

    Args:
        dropped: whether the mask says which blocks it drops (`BlockMask.dropped`), so that a `tail` can stand for them. It takes a launch.
        scores: as in `sparse_attention`, where "keys" is what a call with a tail has.

    Returns:
        A `BlockMask`, on the device of q. No gradient flows into a selection.
    """
    is_causal, enable_gqa = checked_flag("is_causal", is_causal), checked_flag("enable_gqa", enable_gqa)
    dropped = checked_flag("dropped", dropped)
    _, masked = function_numbers(None, mask_mod, is_causal)
    top_k, top_p, scale = _number("top_k", top_k), _number("top_p", top_p), _number("scale", scale)
    block_q, block_kv = block_size = _block_size(block_size)
    _seqs(q, k, layout)
    q, k = _heads_first(q, layout), _heads_first(k, layout)
    arguments = (q, k, top_k, top_p, block_q, block_kv, scale, masked, enable_gqa, dropped, scored_by_keys(scores))
    torch = torch_of(q)
    if torch is None or _is_plain(torch, q, k, k):
        lists = _native.block_mask(*arguments)
    else:
        _check_types(torch, q=q, k=k)
        # A selection carries no gradient: q and k may require one.
        with torch.no_grad():
            lists = torch.ops.tilewright.block_mask(*arguments)
    function = mask_mod if mask_mod is not None else ("causal" if is_causal else None)
    return BlockMask.of_lists(lists, block_size, (q.shape[2], k.shape[2]), function, dropped)


@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Union[BlockMask[Array], Array, FlexBlockMask],
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[CallOptions],
) -> Array: ...
@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Union[BlockMask[Array], Array, FlexBlockMask],
    *,
    return_lse: Literal[True],
    **options: Unpack[CallOptions],
) -> tuple[Array, Array]: ...
@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Union[BlockMask[Array], Array, FlexBlockMask],
    *,
    return_lse: bool = False,
    **options: Unpack[CallOptions],
) -> Any: ...
def attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    *,
    block_size: tuple[int, int] = (128, 64),
    scale: Optional[float] = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
    layout: Layout = "BHSD",
    return_lse: bool = False,
    score_mod: Any = None,
    mask_mod: Any = None,
    tail: Tail = None,
) -> Any:
    """Attention over the blocks of a mask of one's own.

    Args:
        q, k, v, scale, enable_gqa, layout, return_lse, score_mod: as in `sparse_attention`.
        mask: one of

            - a `tilewright.BlockMask`: `block_mask` made it, or a constructor of the class;
            - a dense map of the blocks to keep, bool `[batch or 1, heads or 1, q_blocks, kv_blocks]`, for blocks of `block_size`;
            - a `BlockMask` of `torch.nn.attention.flex_attention`, whose lists are used as they are. Its BLOCK_SIZE must be one of
              ours; its `mask_mod` applies within its partial blocks.
        block_size: the blocks of a dense map; the other masks know theirs.
        is_causal: the causal mask function applies within the kept blocks. A mask with a function of its own, or with full blocks that
            were not made with "causal", is refused.
        mask_mod: a mask function for the kept blocks, instead of the mask's own. A mask with full blocks that were made with another
            function, or with none, is refused: nothing is decided within full blocks.
        tail: what stands for the blocks that the mask drops, as in `sparse_attention`. A mask that was selected says which these are. What
            lists of one's own leave out may be forbidden instead: such a mask is refused unless `BlockMask.with_admissible` or
            `with_unlisted_dropped` made it, and so is a mask function here that is not the mask's own.

    Returns:
        `out`, or `(out, lse)`.

    Raises:
        As `sparse_attention`; ValueError too for a mask that does not fit the tensors, the function or the tail.
    """
    is_causal, enable_gqa = checked_flag("is_causal", is_causal), checked_flag("enable_gqa", enable_gqa)
    return_lse = checked_flag("return_lse", return_lse)
    mask = as_block_mask(mask, block_size, _seqs(q, k, layout))
    score, masked = function_numbers(score_mod, mask_mod, is_causal)
    own = mask.function_number()
    if mask_mod is None and not is_causal:
        masked = own
    elif masked != own:
        _check_function(mask, is_causal)
    mask.check_fits(q, k, layout)
    tailed = tail_number(tail, mask.BLOCK_SIZE[1], score_mod)
    if tailed != 0:
        _check_dropped(mask, masked == own)
    scale = _number("scale", scale)
    lists = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    options = (*mask.BLOCK_SIZE, scale, score, masked, enable_gqa)
    torch = torch_of(q)
    if torch is None or _is_plain(torch, q, k, v):
        if layout not in _LAYOUTS:
            raise _wrong_layout(layout)
        dropped = mask.dropped if tailed != 0 else None
        out, lse = _native.attention(q, k, v, *lists, *options, layout == "BSHD", dropped, tailed)
    else:
        _check_operands(torch, q, k, v)
        q, k, v = (_heads_first(tensor, layout) for tensor in (q, k, v))
        dropped = mask.dropped_bits if tailed != 0 else None
        _check_types(torch, **mask.lists(), dropped=dropped)
        out, lse = torch.ops.tilewright.attention(q, k, v, *lists, *options, dropped, tailed)
        out = _heads_first(out, layout)
    return (out, lse) if return_lse else out


def _block_size(pair: Any) -> tuple[int, int]:
    """A pair of `BLOCK_SIZES`, which it mostly is; the checks cost more than this question."""
    if type(pair) is tuple and pair in BLOCK_SIZES and type(pair[0]) is int and type(pair[1]) is int:
        return pair
    return checked_pair(pair)


def _number(what: str, value: Any) -> Any:
    """An option as PyTorch's operators take it: numbers of numpy are made Python's, symbolic ones stay."""
    if value is None or isinstance(value, (float, int)):
        return value
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} is {value!r}, of type {type(value).__name__}, needed a number or None")
    return value


def check_options(top_k: Any, top_p: Any, scale: Any, layout: Any) -> None:
    """Raises what a call with these options raises."""
    for what, share in (("top-k", _number("top_k", top_k)), ("top-p", _number("top_p", top_p))):
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"{what} is {share!r}, needed a share in (0, 1]: 0.03 keeps 3 %")
    scale = _number("scale", scale)
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"the scale is {scale!r}, needed a finite number; without one it is 1 / sqrt(head_dim)")
    if layout not in _LAYOUTS:
        raise _wrong_layout(layout)


def _is_plain(torch: Any, q: Any, k: Any, v: Any) -> bool:
    """Whether the operator would do nothing but call the kernel, so that its dispatch (some 8 µs) can be left out.

    Not so while compiling, exporting or tracing, under autocast, a dispatch mode, a transform of torch.func or a level of forward-mode
    differentiation, with a subclass of Tensor, or where a gradient is wanted.
    """
    if torch.compiler.is_compiling():
        return False
    tensor, core = torch.Tensor, torch._C
    return (
        type(q) is tensor
        and type(k) is tensor
        and type(v) is tensor
        and not (core.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))
        and not core._is_any_autocast_enabled()
        and not core._len_torch_dispatch_stack()
        and core._functorch.maybe_current_level() is None
        and core._get_tracing_state() is None
        and torch.autograd.forward_ad._current_level < 0
        and not q.is_meta
        # An old nested tensor looks like a plain one, and has no shape.
        and not (q.is_nested or k.is_nested or v.is_nested)
    )


def _check_operands(torch: Any, q: Any, k: Any, v: Any) -> None:
    """What stands before the operators: q, k and v are dense tensors, and no derivative through them is wanted that there is none of."""
    _check_types(torch, q=q, k=k, v=v)
    if not torch.compiler.is_compiling():
        from .ops import refuse_derivatives

        refuse_derivatives(q, k, v)


def _check_types(torch: Any, **tensors: Any) -> None:
    for what, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{what} is of type {type(tensor).__name__}, needed a torch.Tensor as q is: convert it first"
            )
        _refuse_nested(what, tensor)
        if tensor.layout is not torch.strided:
            raise ValueError(
                f"{what} has the layout {tensor.layout}, needed torch.strided: make it dense with `.to_dense()`"
            )


def _refuse_nested(what: str, tensor: Any) -> None:
    if getattr(tensor, "is_nested", False):
        raise TypeError(
            f"{what} is a nested tensor, needed one of a single shape: call once for each of `{what}.unbind()`, or pad it with "
            f"`torch.nested.to_padded_tensor({what}, 0.0)` and pass a mask_mod that drops the padded keys"
        )


def _check_function(mask: BlockMask, is_causal: bool) -> None:
    """Raises ValueError where the function of a call, which is not the mask's, would decide about too few of its blocks."""
    function, full = mask.mask_mod, mask.full_kv_num_blocks is not None
    made = "without a function" if function is None else f"with the function {function!r}"
    if is_causal and (function is not None or full):
        what = "the full blocks of the mask are" if full else "the mask is"
        raise ValueError(
            f"is_causal is given, and {what} made {made}: write the causal condition into the mask function, and make the "
            "mask with it"
        )
    if full:
        raise ValueError(
            f"mask_mod is given, and the mask's full blocks, within which no function decides, are made {made}: write both conditions "
            "into one mask function, and make the mask with it"
        )


def _check_dropped(mask: BlockMask, is_own: bool) -> None:
    """Raises ValueError unless the mask says what a tail stands for. `is_own`: whether the function of the call is the mask's."""
    if mask.dropped_bits is None:
        raise ValueError(
            "the mask does not say which of the blocks it leaves out are dropped and which are forbidden: give it `with_admissible(mask)`, or "
            "`with_unlisted_dropped()` if none is forbidden"
        )
    if not is_own:
        raise ValueError(
            "a tail and a mask function are given, and the mask was made without this function, which may forbid keys of the blocks that the "
            "mask drops: make the mask with the function"
        )


def _heads_first(tensor: Any, layout: str) -> Any:
    if layout == "BHSD":
        return tensor
    if layout != "BSHD":
        raise _wrong_layout(layout)
    if len(tensor.shape) != 4:
        raise ValueError(
            f"a tensor has {len(tensor.shape)} dimensions (shape {tuple(tensor.shape)}), needed 4: batch, sequence, "
            "heads and head dimension"
        )
    return tensor.swapaxes(1, 2)


def _seqs(q: Any, k: Any, layout: str) -> tuple[int, int]:
    if layout not in _LAYOUTS:
        raise _wrong_layout(layout)
    axis = 1 if layout == "BSHD" else 2
    for what, tensor in (("q", q), ("k", k)):
        _refuse_nested(what, tensor)
        if not hasattr(tensor, "shape"):
            raise TypeError(
                f"{what} is of type {type(tensor).__name__}, needed a torch.Tensor or a numpy array: convert it first"
            )
    if len(q.shape) != 4 or len(k.shape) != 4:
        raise ValueError(
            f"q has shape {tuple(q.shape)} and k {tuple(k.shape)}, needed 4 dimensions: batch, heads, sequence and head dimension"
        )
    return q.shape[axis], k.shape[axis]


def _wrong_layout(layout: object) -> ValueError:
    return ValueError(
        f'layout is {layout!r}, needed "BHSD" (batch, heads, sequence, head dimension) or "BSHD" (batch, sequence, heads, '
        "head dimension)"
    )
