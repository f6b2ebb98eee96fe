"""Whether a call computes at all: exporting, fake tensors and the meta device run a model over tensors without values."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import is_fake


def exporting():
    """Whether torch.export traces this call, by itself or with TorchDynamo (`strict=True`).

    Within torch.compile `torch.compiler.is_exporting` says so too: it is asked outside of what is traced.
    """
    return torch.compiler.is_exporting() and _exports()


def _exports():
    return torch.compiler._is_exporting_flag


# TorchDynamo calls it instead of tracing it: see `tilewright._torch._is_bound`.
_exports._dynamo_marked_constant = True


def has_values(tensor):
    """Whether there are numbers in the tensor that can be read, and kept, after this call.

    In torch.compile there are: what it traces runs later, with real tensors and the same side effects.
    """
    if exporting():
        return False
    return torch.compiler.is_compiling() or not (tensor.is_meta or is_fake(tensor))
