"""The models: the transformers of a pipeline, the attentions of a transformer."""

from __future__ import annotations

import torch

from . import processors

#: What is known to work, for errors.
SUPPORTED = (
    "WanTransformer3DModel (Wan 2.1 and 2.2), WanVACETransformer3DModel, CogVideoXTransformer3DModel, "
    "HunyuanVideoTransformer3DModel, HunyuanVideoFramepackTransformer3DModel and LTXVideoTransformer3DModel"
)


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
    """(name, attention, family) of each attention to make sparse.

    Raises:
        ValueError: there is none, or none of these numbers.
    """
    found, seen = [], {}
    for name, module in model.named_modules():
        processor = getattr(module, "processor", None)
        if processor is None or not hasattr(module, "set_processor"):
            continue
        if isinstance(processor, processors.SparseProcessor):
            processor = processor.dense  # enabled already: settings are replaced
        seen[_described(processor)] = None
        family = processors.family_of(processor)
        # Of a transformer block's two, attn2 is the cross-attention.
        if family is not None and name.rpartition(".")[2] != "attn2":
            found.append((name, module, family))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention that can be made sparse: its processors are "
            f"{', '.join(sorted(seen)) or 'none'}, needed those of {SUPPORTED}"
        )
    if layers is None:
        return found
    wrong = [layer for layer in layers if not -len(found) <= layer < len(found)]
    if wrong:
        raise ValueError(f"layers has {wrong}, the model has {len(found)} layers, 0 to {len(found) - 1}")
    chosen = {layer % len(found) for layer in layers}
    return [attention for number, attention in enumerate(found) if number in chosen]


def _described(processor):
    """The processor's class in words; of one that looks like a class we know, why it is not that class."""
    cls = type(processor)
    for known in processors.known():
        if cls is not known and cls.__name__ == known.__name__:
            return f"{cls.__name__} (of {cls.__module__}, which is another class than that of {known.__module__})"
        if cls is not known and issubclass(cls, known):
            return f"{cls.__name__} (derived from {known.__name__}, whose place it takes: what it adds would be lost)"
    return cls.__name__
