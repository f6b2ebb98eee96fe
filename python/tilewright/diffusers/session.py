"""Sparse attention in one model: settings, counts and hooks."""

from __future__ import annotations

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
        arguments = Arguments(self._names, args, kwargs)
        self.steps.observe(arguments["timestep"])
        if self._reads_text:
            self.text.observe(arguments["encoder_attention_mask"])
