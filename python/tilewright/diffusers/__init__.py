"""Sparse attention for the video transformers of diffusers.

    >>> import tilewright.diffusers
    >>> tilewright.diffusers.enable(pipe, top_k=0.03, top_p=0.2, grid="auto", skip_first_steps=5)
    >>> video = pipe(prompt).frames
    >>> print(tilewright.diffusers.report(pipe))
    >>> tilewright.diffusers.disable(pipe)

Wan 2.1 and 2.2, CogVideoX, HunyuanVideo and LTX-Video: the self-attention of the video's tokens becomes sparse, everything else stays as
it was. `docs/diffusers.md` has the details.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

try:
    import diffusers as _diffusers  # noqa: F401
    import torch
except ImportError as error:
    raise ImportError(
        f"tilewright.diffusers needs torch and diffusers, and {error.name} is missing: pip install torch diffusers"
    ) from error

from . import processors
from .arguments import Arguments
from .counts import Counts, Report
from .regroup import regrouping_for
from .steps import Steps
from .text import TextLengths

__all__ = ["Enabled", "Report", "disable", "enable", "report"]

# The models whose attention is sparse now.
_sessions: weakref.WeakKeyDictionary[torch.nn.Module, _Session] = weakref.WeakKeyDictionary()


def enable(
    model_or_pipe: Any,
    *,
    top_k: float | None = 0.03,
    top_p: float | None = 0.2,
    block_size: tuple[int, int] = (128, 64),
    skip_first_steps: int = 0,
    layers: Iterable[int] | None = None,
    grid: Sequence[int] | str | None = None,
    tile: Sequence[int] | None = None,
    min_tokens: int = 4096,
) -> Enabled:
    """Makes the self-attention of a video transformer, or of all transformers of a pipeline, sparse.

    Cross-attention and sequences of fewer than `min_tokens` video tokens stay dense, and so does whatever has an attention mask that is
    not HunyuanVideo's padding of the text. In joint attention (CogVideoX, HunyuanVideo) text stays dense: every query sees all of the
    text, and a text query sees everything. Enabling again replaces the settings and starts a new report.

    Args:
        model_or_pipe: a transformer of diffusers, or a pipeline with one as `transformer` (and `transformer_2`).
        top_k, top_p, block_size: which blocks are kept: see `tilewright.sparse_attention`.
        skip_first_steps: how many denoising steps at the start of every run stay dense.
        layers: the numbers of the transformer blocks to make sparse, from 0 in the order of the model, -1 the last (HunyuanVideo's single
            stream blocks follow its double stream ones); all when not given.
        grid: `"auto"` regroups the tokens into cubes at the entry of the model and puts them back at its exit, with the grid each call's
            input has; (t, h, w) insists on one. Tokens stay in raster order when not given.
        tile: the cube; its product is `block_size[1]`. See `tilewright.TokenGrid`.
        min_tokens: video tokens below which attention stays dense.

    Returns:
        A handle: `with enable(pipe): …` disables at the end of the block. It can be ignored.

    Raises:
        ValueError: a model without an attention that can be made sparse, or options that do not fit it.
        TypeError: neither a module nor a pipeline.
    """
    models = _transformers(model_or_pipe)
    skip_first_steps = _count("skip_first_steps", skip_first_steps)
    options = _Options(top_k, top_p, tuple(block_size), _count("min_tokens", min_tokens))
    if isinstance(grid, str) and grid != "auto":
        raise ValueError(f'grid is {grid!r}, needed "auto", three sizes (t, h, w) or None')
    layers = None if layers is None else list(layers)
    steps = Steps(skip_first_steps)
    # All are checked before the first is changed.
    sessions = [_Session(model, options, steps, layers, grid, tile) for model in models.values()]
    disable(model_or_pipe)
    for session in sessions:
        session.begin()
    return Enabled(model_or_pipe)


def disable(model_or_pipe: Any) -> None:
    """Gives a model, or the transformers of a pipeline, back the attention processors they had. Nothing happens where none is enabled.

    A processor that was set after `enable` is left where it is.
    """
    for model in _transformers(model_or_pipe, supported=False).values():
        session = _sessions.pop(model, None)
        if session is not None:
            session.end()


def report(model_or_pipe: Any) -> Report:
    """What sparse attention did since `enable`. Waits for the device.

    Raises:
        ValueError: sparse attention is not enabled.
    """
    models = _transformers(model_or_pipe, supported=False)
    found = {name: _sessions[model].counts for name, model in models.items() if model in _sessions}
    if not found:
        raise ValueError("sparse attention is not enabled: call tilewright.diffusers.enable first")
    return Counts.report({f"{name}." if len(models) > 1 else "": counts for name, counts in found.items()})


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


class _Options:
    def __init__(self, top_k, top_p, block_size, min_tokens):
        self.top_k, self.top_p, self.block_size, self.min_tokens = top_k, top_p, block_size, min_tokens


class _Session:
    """Sparse attention in one model: its settings, counts and hooks. The processors look here at every call."""

    def __init__(self, model, options, steps, layers, grid, tile):
        self.options, self.steps = options, steps
        self.counts = Counts()
        self.text_lengths = None
        self._lengths = TextLengths()
        self._model = weakref.ref(model)
        self._attentions = _attentions(model, layers)
        self._set = []
        self._hooks = []
        self._grid = None
        if grid is not None:
            if getattr(model, "_parallel_config", None) is not None:
                raise ValueError("a token grid was asked for, and the model runs context-parallel, on a part of its tokens: leave grid out")
            self._grid = regrouping_for(model), grid, tile

    def begin(self):
        """Puts processors and hooks in place."""
        model = self._model()
        self._hooks = [model.register_forward_pre_hook(self._enter, with_kwargs=True)]
        if self._grid is not None:
            family, grid, tile = self._grid
            self._hooks.append(family(model, grid, tile, self.options.block_size, self.options.min_tokens))
        for name, attention, family in self._attentions:
            processor = family(attention.processor, self, name)
            self._set.append((attention, processor))
            attention.set_processor(processor)
        _sessions[model] = self

    def end(self):
        """Takes them away again."""
        for attention, processor in self._set:
            if attention.processor is processor:
                attention.set_processor(processor.dense)
        for hook in self._hooks:
            hook.remove()

    def reason_for_dense(self, tokens, masked, sharded):
        """Why a call of `tokens` video tokens has to stay dense; `None` if it does not."""
        if tokens < self.options.min_tokens:
            return "short"
        if self.steps.skipping:
            return "in skipped steps"
        if masked:
            return "with an attention mask"
        if sharded:
            return "context-parallel"
        return None

    def _enter(self, model, args, kwargs):
        arguments = Arguments(model, args, kwargs)
        self.steps.observe(arguments["timestep"])
        mask = arguments["encoder_attention_mask"]
        joint = any(family is processors.HunyuanVideoProcessor for _, _, family in self._attentions)
        self.text_lengths = self._lengths.of(mask) if joint and mask is not None else None


def _transformers(model_or_pipe, supported=True):
    """The models by name; with `supported`, only those of a pipeline that have attention we know."""
    if isinstance(model_or_pipe, torch.nn.Module):
        return {"transformer": getattr(model_or_pipe, "_orig_mod", model_or_pipe)}  # torch.compile's wrapper has the model inside
    components = getattr(model_or_pipe, "components", None)
    if not isinstance(components, dict):
        raise TypeError(f"got {type(model_or_pipe).__name__}, needed a transformer (a torch.nn.Module) or a pipeline of diffusers")
    models = {name: getattr(model, "_orig_mod", model) for name, model in components.items() if isinstance(model, torch.nn.Module)}
    models = {name: model for name, model in models.items() if name.startswith("transformer")}
    if supported and not models:
        raise ValueError(f"{type(model_or_pipe).__name__} has no transformer among its components ({', '.join(components)})")
    return models


def _attentions(model, layers):
    """(name, attention, family) of each attention to make sparse."""
    found, seen = [], set()
    for name, module in model.named_modules():
        processor = getattr(module, "processor", None)
        if processor is None or not hasattr(module, "set_processor"):
            continue
        if isinstance(processor, processors.SparseProcessor):
            processor = processor.dense  # enabled already: settings are replaced
        seen.add(type(processor).__name__)
        family = processors.family_of(processor)
        # Of a transformer block's two, attn2 is the cross-attention.
        if family is not None and name.rpartition(".")[2] != "attn2":
            found.append((name, module, family))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention that can be made sparse: its processors are "
            f"{', '.join(sorted(seen)) or 'none'}, needed those of Wan, CogVideoX, HunyuanVideo or LTX-Video"
        )
    if layers is None:
        return found
    wrong = [layer for layer in layers if not -len(found) <= layer < len(found)]
    if wrong:
        raise ValueError(f"layers has {wrong}, the model has {len(found)} layers, 0 to {len(found) - 1}")
    chosen = {layer % len(found) for layer in layers}
    return [attention for number, attention in enumerate(found) if number in chosen]


def _count(what, value):
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{what} is {value!r}, needed a whole number of at least 0")
    return value
