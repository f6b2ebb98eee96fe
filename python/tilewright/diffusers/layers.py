"""The attention processors of an enabled model: the model's own, whose attention goes by the backend `tilewright` as that of this layer.

What a family does around attention (projections, norms, rotary embedding) stays with its own processor. The one of CogVideoX does not go
by diffusers' backends; it is written anew here.
"""

from __future__ import annotations

import copy
import functools

import torch
from diffusers.models import attention_processor
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers import transformer_hunyuan_video

from . import backend, text
from .current import current
from .tally import Tally

#: In the place of a reason.
NOT_CALLED = "not called"


class Layer:
    """In the place of the processor `dense`, which is left as it is.

    `session` has the settings, `tally` what the layer did. Its class is made for each class of processors, by `layer_of`, with
    the signature of that class's call: models look at it.
    """

    #: Whether it needs the lengths of the model's padded text.
    reads_text = False

    def __init__(self, dense, session, device):
        self.dense = dense
        self.session = session
        self.tally = Tally(device)
        #: Why the last call stayed dense; `None` where it was sparse.
        self.reason = NOT_CALLED
        self.sparse = self._sent_here(dense)

    @staticmethod
    def _sent_here(dense):
        # A copy: modules may share one processor, and it has to come back as it was.
        sparse = copy.copy(dense)
        sparse._attention_backend = backend.BACKEND
        return sparse

    def __reduce__(self):
        return _blank, (type(self.dense),), self.__dict__

    # diffusers sets these two on whatever processor it finds (`model.set_attention_backend`, context parallelism); one that
    # lacks them must go on lacking them. The backend is that of the calls that stay dense.
    @property
    def _attention_backend(self):
        return self.dense._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, name):
        self.dense._attention_backend = name

    @property
    def _parallel_config(self):
        return self.dense._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config):
        self.dense._parallel_config = self.sparse._parallel_config = config

    def fallback(self):
        """The backend of calls that stay dense; `None` for the active one."""
        chosen = self.dense._attention_backend
        if chosen is None:
            chosen = _AttentionBackendRegistry._active_backend
        return AttentionBackendName.NATIVE if chosen is backend.BACKEND else chosen

    def was_sparse(self, masks):
        """Takes the masks of a sparse call."""
        self.reason = None
        self.tally.sparse(masks)

    def stayed_dense(self, reason, tensor):
        """Takes the reason, one of `tally.REASONS`, why a call over `tensor` stayed dense."""
        self.reason = reason
        self.tally.dense(reason, tensor)

    def joint(self, *args, **kwargs):
        """What the arguments of a call say of text in the sequence; `None` where there is none."""
        return None

    def run(self, args, kwargs):
        """The processor's call, as this layer's."""
        outer = current.layer, current.joint
        current.layer, current.joint = self, self.joint(*args, **kwargs)
        try:
            return self.sparse(*args, **kwargs)
        finally:
            current.layer, current.joint = outer


class _HunyuanVideo(Layer):
    """Joint attention of video and text, which is last and padded: padding is no key, by the model's `encoder_attention_mask`.

    Framepack puts the tokens of an image before the text.
    """

    reads_text = True

    def joint(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        if encoder_hidden_states is None:
            return None
        lengths = self.session.text.lengths(hidden_states, encoder_hidden_states, attention_mask)
        return text.Joint(hidden_states.shape[1], lengths)


class _CogVideoX(Layer):
    """Joint attention of text and video, with one set of projections.

    The model puts the text first; here it goes last, so that blocks begin where the video begins. Attention does not see the difference.
    """

    @staticmethod
    def _sent_here(dense):
        return dense

    def run(self, args, kwargs):
        return self._attend(*args, **kwargs)

    def _attend(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        video = hidden_states.shape[1]
        parallel = getattr(self.dense, "_parallel_config", None)
        reason = backend.reason_for_dense(self, hidden_states, video, attention_mask is not None, 0.0, parallel)
        if reason is not None:
            self.stayed_dense(reason, hidden_states)
            return self.dense(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

        joint = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        if attn.fused_projections:
            query, key, value = attn.to_qkv(joint).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(joint), attn.to_k(joint), attn.to_v(joint)
        query, key, value = (tensor.unflatten(2, (attn.heads, -1)) for tensor in (query, key, value))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = _rotate_video(query, image_rotary_emb, video), _rotate_video(key, image_rotary_emb, video)
        lengths = [encoder_hidden_states.shape[1]] * query.shape[0]
        out, masks = text.attend(query, key, value, text.Joint(video, lengths), self.session.options)
        self.was_sparse(masks)
        out = out.flatten(2)
        for module in attn.to_out:  # the projection, then dropout
            out = module(out)
        return out[:, :video], out[:, video:]


def _rotate_video(tensor, tables, video):
    """RoPE on the first `video` tokens of `[batch, tokens, heads, d]`; text tokens have no position."""
    return torch.cat([apply_rotary_emb(tensor[:, :video], tables, sequence_dim=1), tensor[:, video:]], dim=1)


_FAMILIES = {
    attention_processor.CogVideoXAttnProcessor2_0: _CogVideoX,
    attention_processor.FusedCogVideoXAttnProcessor2_0: _CogVideoX,
    transformer_hunyuan_video.HunyuanVideoAttnProcessor2_0: _HunyuanVideo,
}


def can_be_sparse(processor):
    """Whether a layer can stand in the place of this processor."""
    if isinstance(processor, torch.nn.Module):  # the model's own parameters
        return False
    return type(processor) in _FAMILIES or hasattr(processor, "_attention_backend")


@functools.cache
def _class_for(dense):
    """The class of layers for processors of the class `dense`."""

    @functools.wraps(dense.__call__)
    def call(self, *args, **kwargs):
        return self.run(args, kwargs)

    return type(f"Sparse{dense.__name__}", (_FAMILIES.get(dense, Layer),), {"__call__": call, "__module__": __name__})


def layer_of(dense, session, device):
    """A layer in the place of the processor `dense`."""
    return _class_for(type(dense))(dense, session, device)


def _blank(dense):
    """A layer to be filled by a copy or an unpickled state."""
    cls = _class_for(dense)
    return cls.__new__(cls)
