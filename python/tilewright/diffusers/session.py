"""Sparse attention in one model: settings, counts and hooks."""

from __future__ import annotations

import sys
import threading

import torch

from . import processors
from .arguments import Arguments, names_of
from .counts import Counts
from .text import TextLengths


class Session:
    """What `enable` leaves in a model. The processors look here at every call.

    It belongs to the model through the model's own hooks, and refers to no model itself: a copy of the model, or one that
    was pickled, has a session of its own, which goes on with the same settings.
    """

    def __init__(self, options, steps):
        self.options, self.steps = options, steps
        self.counts = Counts()
        self.text = TextLengths()
        self._reads_text = False
        self._names = []
        self._hooks = []
        self._callers = set()

    def __getstate__(self):
        return {**self.__dict__, "_callers": set()}

    @staticmethod
    def of(model):
        """The session of a model; `None` where sparse attention is not enabled."""
        for hook in model._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Session):
                return owner
        return None

    def begin(self, model, attentions, regrouping):
        """Puts processors and hooks in place."""
        self._names = names_of(model)
        self._hooks = [model.register_forward_pre_hook(self._enter, with_kwargs=True)]
        if regrouping is not None:
            self._hooks.append(regrouping(model, self.options))
        for name, attention, family in attentions:
            self._reads_text |= family.reads_text
            attention.set_processor(family(attention.processor, self, name))

    def end(self, model):
        """Takes them away again."""
        for module in model.modules():
            processor = getattr(module, "processor", None)
            if isinstance(processor, processors.SparseProcessor) and processor.session is self:
                module.set_processor(processor.dense)
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
        if not torch.compiler.is_compiling():
            self._enter_alone(model)
        arguments = Arguments(self._names, args, kwargs)
        self.steps.observe(arguments["timestep"])
        if self._reads_text:
            self.text.observe(arguments["encoder_attention_mask"])

    def _enter_alone(self, model):
        """Refuses a call while another thread is in one: step, prompts and grid are kept here until it ends."""
        me = threading.get_ident()
        # First this thread is known, then it looks: of two that come at once one sees the other.
        self._callers.add(me)
        for other in self._callers - {me}:
            if _is_calling(other, model):
                self._callers.discard(me)
                raise RuntimeError(
                    f"{type(model).__name__} is called by two threads at once. With sparse attention enabled it keeps the step, the "
                    "prompts and the grid of one call: call it under a lock, or give each thread a copy of its own"
                )
            self._callers.discard(other)


def _is_calling(thread, model):
    """Whether a thread is in a call of this very model. A call that raised has left no frame."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code is torch.nn.Module._call_impl.__code__ and frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False
