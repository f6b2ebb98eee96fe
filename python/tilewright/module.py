"""`SparseAttention`: the function as a module of PyTorch."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn

from ._torch import bind
from ._typing import Layout, Scores, Tail
from .functional import check_options, sparse_attention
from .functions import DeviceFunction
from .mask import checked_flag, checked_pair, function_numbers, scored_by_keys, tail_number

bind()


class SparseAttention(nn.Module):
    """`tilewright.sparse_attention` with its options kept: a drop-in for a module that calls `scaled_dot_product_attention`.

    It has no parameters. Options are those of `sparse_attention`, and refused here as there; they are attributes and may be changed
    between calls, a schedule of `top_k` over the denoising steps say.

    Example:
        >>> attention = tilewright.SparseAttention(top_k=0.05, layout="BSHD")
        >>> out = attention(q, k, v)  # [batch, seq, heads, d]
    """

    def __init__(
        self,
        *,
        top_k: Optional[float] = 0.03,
        top_p: Optional[float] = 0.2,
        block_size: tuple[int, int] = (128, 64),
        scale: Optional[float] = None,
        is_causal: bool = False,
        enable_gqa: bool = False,
        layout: Layout = "BHSD",
        score_mod: Optional[DeviceFunction] = None,
        mask_mod: Optional[DeviceFunction] = None,
        tail: Tail = None,
        scores: Optional[Scores] = None,
    ) -> None:
        super().__init__()
        check_options(top_k, top_p, scale, layout)
        is_causal, enable_gqa = checked_flag("is_causal", is_causal), checked_flag("enable_gqa", enable_gqa)
        function_numbers(score_mod, mask_mod, is_causal)
        self.top_k, self.top_p = top_k, top_p
        self.block_size = checked_pair(block_size)
        self.scale, self.is_causal, self.enable_gqa = scale, is_causal, enable_gqa
        self.layout: Layout = layout
        self.score_mod, self.mask_mod = score_mod, mask_mod
        tail_number(tail, self.block_size[1], score_mod)
        self.tail: Tail = tail
        scored_by_keys(scores)
        self.scores: Optional[Scores] = scores

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Any = None) -> torch.Tensor:
        """Shapes as in `sparse_attention`; with `mask` these blocks are attended to instead of selected ones."""
        return sparse_attention(
            q,
            k,
            v,
            top_k=self.top_k,
            top_p=self.top_p,
            block_size=self.block_size,
            mask=mask,
            scale=self.scale,
            is_causal=self.is_causal,
            enable_gqa=self.enable_gqa,
            layout=self.layout,
            score_mod=self.score_mod,
            mask_mod=self.mask_mod,
            tail=self.tail,
            scores=self.scores,
        )

    def extra_repr(self) -> str:
        options = {
            "top_k": self.top_k,
            "top_p": self.top_p,
            "block_size": self.block_size,
            "scale": self.scale,
            "is_causal": self.is_causal,
            "enable_gqa": self.enable_gqa,
            "layout": self.layout,
            "score_mod": self.score_mod,
            "mask_mod": self.mask_mod,
            "tail": self.tail,
            "scores": self.scores,
        }
        return ", ".join(f"{name}={value!r}" for name, value in options.items())
