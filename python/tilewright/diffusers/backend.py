"""Tilewright as an attention backend of diffusers: `model.set_attention_backend("tilewright")`, its context manager and
`DIFFUSERS_ATTN_BACKEND=tilewright`.

diffusers calls `attend` with q, k and v of every attention that goes by its `dispatch_attention_fn`. Which calls become sparse is
decided here, by what the call is: self-attention of a long sequence. Within a model that is enabled its layer has the rule and
counts; elsewhere it is `DEFAULT`.
"""

from __future__ import annotations

import torch
from diffusers.utils import constants

import tilewright

from . import text
from .current import current
from .options import Options

NAME = "tilewright"

# diffusers looks the variable's value up among its own backends when the next module is imported.
_chosen = constants.DIFFUSERS_ATTN_BACKEND == NAME
if _chosen:
    constants.DIFFUSERS_ATTN_BACKEND = "native"

from diffusers.models import attention_dispatch  # noqa: E402
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry  # noqa: E402

_HALF = (torch.float16, torch.bfloat16)


def _member():
    """The backend's name among those of diffusers, whose enum has no way to register one."""
    known = AttentionBackendName._value2member_map_.get(NAME)
    if known is not None:
        return known
    member = str.__new__(AttentionBackendName, NAME)
    member._name_, member._value_ = NAME.upper(), NAME
    member.__objclass__ = AttentionBackendName
    AttentionBackendName._member_map_[member._name_] = member
    AttentionBackendName._value2member_map_[NAME] = member
    AttentionBackendName._member_names_.append(member._name_)
    return member


BACKEND = _member()

#: The rule of a model that nobody enabled: tokens are in raster order there, so that a tail is worth little.
DEFAULT = Options(
    top_k=0.03,
    top_p=0.2,
    block_size=(128, 64),
    min_tokens=4096,
    skip_first_steps=0,
    grid=None,
    tile=None,
    tail=None,
    scores=None,
)


@_AttentionBackendRegistry.register(BACKEND)
def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    _parallel_config: object = None,
) -> torch.Tensor:
    """Attention of `[batch, tokens, heads, d]`: sparse where the call is self-attention of a long sequence, else dense."""
    layer, joint = current.layer, current.joint
    # Attention to a text, an image or the tokens of another stream.
    if query.shape[1] == key.shape[1]:
        video = query.shape[1] if joint is None else joint.video
        masked = attn_mask is not None and (joint is None or joint.lengths is None)
        reason = reason_for_dense(layer, query, video, masked, dropout_p, _parallel_config)
        if reason is None:
            options = DEFAULT if layer is None else layer.session.options
            given = {"scale": scale, "enable_gqa": enable_gqa}
            if joint is not None:
                out, masks = text.attend(query, key, value, joint, options, **given)
            else:
                out, mask = attend_alone(query, key, value, options, is_causal=is_causal, **given)
                masks = [mask]
            if layer is not None:
                layer.was_sparse(masks)
            return out
        if layer is not None:
            layer.stayed_dense(reason, query)
    return attention_dispatch.dispatch_attention_fn(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        backend=AttentionBackendName.NATIVE if layer is None else layer.fallback(),
        parallel_config=_parallel_config,
    )


def attend_alone(query, key, value, options, **given):
    """Self-attention of `[batch, tokens, heads, d]`, and its mask."""
    return tilewright.sparse_attention(
        query,
        key,
        value,
        top_k=options.top_k,
        top_p=options.top_p,
        block_size=options.block_size,
        layout="BSHD",
        return_mask=True,
        tail=options.tail,
        scores=options.scores,
        **given,
    )


def reason_for_dense(layer, query, video, masked, dropout_p=0.0, parallel_config=None):
    """Why a call over `video` tokens stays dense, one of `tally.REASONS`; `None` where it does not."""
    options = DEFAULT if layer is None else layer.session.options
    if video < options.min_tokens:
        return "short"
    if layer is not None and layer.session.steps.skipping:
        return "in skipped steps"
    if masked:
        return "with an attention mask"
    # A shard of a context-parallel sequence does not see the keys of the others: only the dense backends exchange them.
    if parallel_config is not None:
        return "context-parallel"
    if query.dtype not in _HALF:
        return "of another dtype than float16 and bfloat16"
    if dropout_p != 0.0:
        return "with dropout"
    return None


if _chosen:
    _AttentionBackendRegistry.set_active_backend(BACKEND)
