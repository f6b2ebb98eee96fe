"""The models: the transformers of a pipeline, the attentions of a transformer."""

from __future__ import annotations

import torch

from .layers import Layer, can_be_sparse

def transformers(model_or_pipe, supported=True):
    """The models by name; with `supported`, a pipeline without a transformer is an error."""
    if isinstance(model_or_pipe, torch.nn.Module):
        return {"transformer": _uncompiled(model_or_pipe)}
    components = getattr(model_or_pipe, "components", None)
    if not isinstance(components, dict):
        found = type(model_or_pipe).__name__
        raise TypeError(f"got {found}, needed a transformer (a torch.nn.Module) or a pipeline of diffusers")
    models = {}
    for name, model in components.items():
        if not name.startswith("transformer") or not isinstance(model, torch.nn.Module):
            continue
        model = _uncompiled(model)
        if not any(model is known for known in models.values()):  # one model may have two places
            models[name] = model
    if supported and not models:
        found = type(model_or_pipe).__name__
        raise ValueError(f"{found} has no transformer among its components ({', '.join(components)})")
    return models


def _uncompiled(model):
    """The model inside the wrapper of torch.compile."""
    return getattr(model, "_orig_mod", model)


def attentions(model, layers):
    """(name, attention) of each self-attention to make sparse.

    Raises:
        ValueError: there is none, or none of these numbers.
    """
    found, seen = [], {}
    for name, module in model.named_modules():
        processor = getattr(module, "processor", None)
        if processor is None or not hasattr(module, "set_processor"):
            continue
        if isinstance(processor, Layer):
            processor = processor.dense  # enabled already: settings are replaced
        seen[type(processor).__name__] = None
        if can_be_sparse(processor) and not _looks_elsewhere(name):
            found.append((name, module))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention that can be made sparse: its processors are "
            f"{', '.join(sorted(seen)) or 'none'}, needed such as go by an attention backend of diffusers (dispatch_attention_fn) or "
            "CogVideoX's"
        )
    if layers is None:
        return found
    wrong = [layer for layer in layers if not -len(found) <= layer < len(found)]
    if wrong:
        raise ValueError(f"layers has {wrong}, the model has {len(found)} layers, 0 to {len(found) - 1}")
    chosen = {layer % len(found) for layer in layers}
    return [attention for number, attention in enumerate(found) if number in chosen]


def _looks_elsewhere(name):
    """Whether an attention of this name has keys of something else than the video: of a transformer block's two, `attn2` is the
    cross-attention, and sound has attentions of its own."""
    *_, last = name.split(".")
    return last == "attn2" or "cross" in last or "audio" in last


def head_dims(attentions):
    """The head dimensions of attentions, as far as they say."""
    found = set()
    for _, attention in attentions:
        width, heads = getattr(attention, "inner_dim", None), getattr(attention, "heads", None)
        if isinstance(width, int) and isinstance(heads, int) and heads > 0:
            found.add(width // heads)
    return found
