"""Whether a call computes at all: exporting, fake tensors and the meta device run a model over tensors without values."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import is_fake


def exporting():
    """Whether torch.export traces this call. Within torch.compile, `torch.compiler.is_exporting` says so too."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def has_values(tensor):
    """Whether there are numbers in the tensor that can be read, and kept, after this call.

    In torch.compile there are: what it traces runs later, with real tensors and the same side effects.
    """
    if exporting():
        return False
    return torch.compiler.is_compiling() or not (tensor.is_meta or is_fake(tensor))
