"""Sparse attention in one model: settings, counts and hooks."""

from __future__ import annotations

import logging
import sys
import threading

import torch

from .arguments import Arguments, names_of
from .layers import NOT_CALLED, Layer, layer_of
from .text import TextLengths
from .tracing import has_values

_logger = logging.getLogger(__name__)


class Session:
    """What `enable` leaves in a model. The layers look here at every call.

    It belongs to the model through the model's own hooks, and refers to no model itself: a copy of the model, or one that
    was pickled, has a session of its own, which goes on with the same settings.
    """

    def __init__(self, options, steps, order):
        self.options, self.steps = options, steps
        #: How the tokens lie, for reports.
        self.order = order
        #: By the names of the attentions.
        self.layers = {}
        self.text = TextLengths()
        self._reads_text = False
        self._names = []
        self._hooks = []
        self._callers = set()
        self._said = False

    def __getstate__(self):
        return {**self.__dict__, "_callers": set(), "_said": False}

    @staticmethod
    def of(model):
        """The session of a model; `None` where sparse attention is not enabled."""
        for hook in model._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Session):
                return owner
        return None

    def begin(self, model, attentions, regrouping):
        """Puts layers and hooks in place."""
        self._names = names_of(model)
        self._hooks = [model.register_forward_pre_hook(self._enter, with_kwargs=True)]
        if regrouping is not None:
            self._hooks.append(regrouping(model, self.options, self.steps))
        for name, attention in attentions:
            device = next((parameter.device for parameter in attention.parameters()), torch.device("cpu"))
            layer = layer_of(attention.processor, self, device)
            self._reads_text |= layer.reads_text
            self.layers[name] = layer
            attention.set_processor(layer)
        self._hooks.append(model.register_forward_hook(self._leave))

    def end(self, model):
        """Takes them away again."""
        for module in model.modules():
            processor = getattr(module, "processor", None)
            if isinstance(processor, Layer) and processor.session is self:
                module.set_processor(processor.dense)
        for hook in self._hooks:
            hook.remove()

    def _enter(self, model, args, kwargs):
        if not torch.compiler.is_compiling():
            self._enter_alone(model)
        arguments = Arguments(self._names, args, kwargs)
        tokens = arguments["hidden_states"]
        if isinstance(tokens, torch.Tensor) and has_values(tokens):
            for layer in self.layers.values():
                layer.tally.follow(tokens.device)
        self.steps.observe(arguments["timestep"])
        if self._reads_text:
            self.text.observe(arguments["encoder_attention_mask"])

    def _leave(self, model, args, output):
        """Says aloud, once, that all calls stay dense: otherwise the time of a run would be all that tells."""
        if self._said or self.steps.skipping or torch.compiler.is_compiling():
            return
        reasons = {layer.reason for layer in self.layers.values()} - {NOT_CALLED}
        if not reasons:
            return
        self._said = True
        if None in reasons:
            return
        _logger.warning(
            "sparse attention is enabled in %s, and all of its %d attentions stayed dense: %s",
            type(model).__name__,
            len(self.layers),
            ", ".join(sorted(reasons)),
        )

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
