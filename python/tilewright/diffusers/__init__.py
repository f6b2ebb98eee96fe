"""Sparse attention for the video transformers of diffusers.

    >>> import tilewright.diffusers
    >>> tilewright.diffusers.enable(pipe, skip_first_steps=5)
    >>> video = pipe(prompt).frames
    >>> print(tilewright.diffusers.report(pipe))
    >>> tilewright.diffusers.disable(pipe)

The self-attention of the video's tokens becomes sparse, everything else stays as it was: in Wan and the models made of it, CogVideoX,
HunyuanVideo, LTX-Video, and in what else goes by diffusers' attention backends. This module is such a backend too, by the name
`tilewright`. `docs/diffusers.md` has the details.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

try:
    import diffusers as _diffusers
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"tilewright.diffusers needs torch and diffusers, and {error.name} is missing: pip install torch diffusers"
    ) from error

#: The oldest diffusers that has the backends and the models this module goes by.
OLDEST = (0, 38)

if tuple(int(part) for part in _diffusers.__version__.split(".")[:2]) < OLDEST:
    raise ImportError(
        f"tilewright.diffusers needs diffusers {OLDEST[0]}.{OLDEST[1]} or newer, found {_diffusers.__version__}: pip install --upgrade diffusers"
    )

from .._typing import Scores, Tail
from . import backend as _backend  # noqa: F401
from .models import attentions, head_dims, transformers
from .options import Options, checked_layers
from .regroup import regrouping_for
from .session import Session
from .steps import Steps
from .tally import Report
from .tally import report as report_of

__all__ = ["Enabled", "Report", "disable", "enable", "report"]


def enable(
    model_or_pipe: Any,
    *,
    top_k: float | None = 0.03,
    top_p: float | None = 0.2,
    block_size: tuple[int, int] = (128, 64),
    skip_first_steps: int = 0,
    layers: Iterable[int] | None = None,
    grid: Sequence[int] | str | None = "auto",
    tile: Sequence[int] | None = None,
    min_tokens: int = 4096,
    tail: Tail | str = "auto",
    scores: Scores | None = None,
) -> Enabled:
    """Makes the self-attention of a video transformer, or of all transformers of a pipeline, sparse.

    Cross-attention and sequences of fewer than `min_tokens` video tokens stay dense, and so does whatever has an attention mask that is
    not HunyuanVideo's padding of the text. In joint attention (CogVideoX, HunyuanVideo) text stays dense: every query sees all of the
    text, and a text query sees everything. Enabling again replaces the settings and starts a new report. A copy of an enabled model, or one
    that was pickled, is enabled too, with settings and a report of its own.

    Args:
        model_or_pipe: a transformer of diffusers, or a pipeline with one as `transformer` (and `transformer_2`).
        top_k, top_p, block_size: which blocks are kept: see `tilewright.sparse_attention`.
        skip_first_steps: how many denoising steps, which are timesteps of the scheduler, at the start of every run stay dense.
        layers: the numbers of the transformer blocks to make sparse, from 0 in the order of the model, -1 the last (HunyuanVideo's single
            stream blocks follow its double stream ones); all when not given.
        grid: `"auto"` regroups the tokens into cubes at the entry of the model and puts them back at its exit, with the grid each call's
            input has, where it is known where the model has its tokens; else they stay in raster order. (t, h, w) insists on a grid,
            `None` on raster order.
        tile: the cube; its product is `block_size[1]`. See `tilewright.TokenGrid`.
        min_tokens: video tokens below which attention stays dense.
        tail: what stands for the video's dropped blocks: `"auto"` is the tail of a block where the tokens lie in cubes, and none where they
            do not; the rest as for `tilewright.sparse_attention`.
        scores: what a block is scored by: see there too.

    Returns:
        A handle: `with enable(pipe): …` disables at the end of the block. It can be ignored.

    Raises:
        ValueError: a model without an attention that can be made sparse, options that do not fit it, or a grid that is insisted on where
            none is known. All options are checked here, and nothing is changed then.
        TypeError: neither a module nor a pipeline, or an option of another type.
    """
    models = transformers(model_or_pipe)
    options = Options(
        top_k=top_k,
        top_p=top_p,
        block_size=block_size,
        min_tokens=min_tokens,
        skip_first_steps=skip_first_steps,
        grid=grid,
        tile=tile,
        tail=tail,
        scores=scores,
    )
    layers = checked_layers(layers)
    steps = Steps(options.skip_first_steps)
    # All are checked before the first is changed.
    plans = []
    for model in models.values():
        chosen = attentions(model, layers)
        for head_dim in head_dims(chosen):
            options.check_head_dim(head_dim)
        regrouping, order = regrouping_for(model, options)
        of_model = options.of_model(in_cubes=regrouping is not None)
        plans.append((Session(of_model, steps, order), model, chosen, regrouping))
    disable(model_or_pipe)
    for session, *plan in plans:
        session.begin(*plan)
    return Enabled(model_or_pipe)


def disable(model_or_pipe: Any) -> None:
    """Gives a model, or the transformers of a pipeline, back the attention processors they had. Nothing happens where none is enabled.

    A processor that was set after `enable` is left where it is.
    """
    for model in transformers(model_or_pipe, supported=False).values():
        session = Session.of(model)
        if session is not None:
            session.end(model)


def report(model_or_pipe: Any) -> Report:
    """What sparse attention did since `enable`. Waits for the device.

    Raises:
        ValueError: sparse attention is not enabled.
    """
    models = transformers(model_or_pipe, supported=False)
    sessions = {name: Session.of(model) for name, model in models.items()}
    found = {name: session for name, session in sessions.items() if session is not None}
    if not found:
        raise ValueError("sparse attention is not enabled: call tilewright.diffusers.enable first")
    layers, orders = {}, {}
    for name, session in found.items():
        prefix = f"{name}." if len(models) > 1 else ""
        layers.update({prefix + layer: of for layer, of in session.layers.items()})
        orders.setdefault(session.order, []).append(name)
    several = len(orders) > 1
    order = "; ".join(f"{', '.join(names)}: {order}" if several else order for order, names in orders.items())
    return report_of(layers, order)


class Enabled:
    """What `enable` returns: a context that disables at its end."""

    def __init__(self, model_or_pipe: Any) -> None:
        self._target = model_or_pipe

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *_: object) -> None:
        self.disable()

    def disable(self) -> None:
        """See `tilewright.diffusers.disable`."""
        disable(self._target)

    def report(self) -> Report:
        """See `tilewright.diffusers.report`."""
        return report(self._target)
