"""The attention processors: one for each family of transformer, in the place of the family's own.

A processor computes the long self-attention sparsely. Everything else (cross-attention, short sequences, skipped steps, masks it
does not know) goes to the processor it replaced, which is therefore also the reference its projections have to agree with.
"""

from __future__ import annotations

import torch
from diffusers.models import attention_processor
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers import transformer_hunyuan_video, transformer_ltx, transformer_wan

import tilewright

from . import text


class SparseProcessor:
    """Sparse where `session` says so, else the processor `dense` that was there before.

    `name` is the attention module's name in the model, under which its sparsity is counted.
    """

    #: Whether it needs the lengths of the model's padded text.
    reads_text = False

    def __init__(self, dense, session, name):
        self.dense = dense
        self.session = session
        self.name = name

    # diffusers sets these two on whatever processor it finds (`model.set_attention_backend`, context parallelism). They concern the
    # dense processor; one that lacks them must go on lacking them.
    @property
    def _attention_backend(self):
        return self.dense._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend):
        self.dense._attention_backend = backend

    @property
    def _parallel_config(self):
        return self.dense._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config):
        self.dense._parallel_config = config

    def stays_dense(self, tokens, masked):
        """Whether this call over `tokens [batch, tokens, channels]` of the video goes to the dense processor; counts why."""
        # A shard of a context-parallel sequence does not see the keys of the others: only the dense processor exchanges them.
        sharded = getattr(self.dense, "_parallel_config", None) is not None
        reason = self.session.reason_for_dense(tokens.shape[1], masked, sharded)
        if reason is not None:
            self.session.counts.dense(reason, tokens)
        return reason is not None

    def attend(self, query, key, value):
        """Self-attention of `[batch, tokens, heads, d]` video tokens."""
        options = self.session.options
        out, mask = tilewright.sparse_attention(
            query,
            key,
            value,
            top_k=options.top_k,
            top_p=options.top_p,
            block_size=options.block_size,
            layout="BSHD",
            return_mask=True,
            tail=options.tail,
            scores=options.scores,
        )
        self.session.counts.sparse(self.name, [mask])
        return out

    def attend_with_text(self, query, key, value, video, lengths):
        """The same over `video` video tokens followed by text tokens, of which each of the batch has `lengths` keys that count."""
        if len(set(lengths)) == 1:
            parts = [(query, key, value, lengths[0])]
        else:  # prompts of unequal length: each video of the batch has its own number of keys
            each = (tensor.split(1) for tensor in (query, key, value))
            parts = list(zip(*each, lengths))
        done = [self._attend_to(q, k[:, : video + n], v[:, : video + n], video) for q, k, v, n in parts]
        self.session.counts.sparse(self.name, [mask for _, mask in done])
        return done[0][0] if len(done) == 1 else torch.cat([out for out, _ in done])

    def _attend_to(self, query, key, value, video):
        options = self.session.options
        mask = tilewright.block_mask(
            query[:, :video],
            key[:, :video],
            top_k=options.top_k,
            top_p=options.top_p,
            block_size=options.block_size,
            layout="BSHD",
            dropped=options.tail is not None,
            scores=options.scores,
        )
        mask = text.keep_text(mask, query.shape[1], key.shape[1], video, says_dropped=options.tail is not None)
        return tilewright.attention(query, key, value, mask, layout="BSHD", tail=options.tail), mask


def _by_head(tensor, heads):
    return tensor.unflatten(2, (heads, -1))


def _project_out(attn, hidden_states):
    for layer in attn.to_out:  # the projection, then dropout
        hidden_states = layer(hidden_states)
    return hidden_states


def _rotate_pairs(x, cos, sin):
    """RoPE over neighbouring pairs of `x [batch, tokens, heads, d]`; the tables give each angle twice, in the layout of `x`."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., ::2], sin[..., ::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


class WanProcessor(SparseProcessor):
    """Wan 2.1 and 2.2: self-attention of the video tokens alone; `attn2` looks at the text."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        cross = encoder_hidden_states is not None
        if cross or self.stays_dense(hidden_states, attention_mask is not None):
            return self.dense(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)

        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (_by_head(tensor, attn.heads) for tensor in (query, key, value))
        if rotary_emb is not None:
            query, key = _rotate_pairs(query, *rotary_emb), _rotate_pairs(key, *rotary_emb)
        return _project_out(attn, self.attend(query, key, value).flatten(2))


class LtxProcessor(SparseProcessor):
    """LTX-Video: self-attention of the video tokens alone; `attn2` looks at the text."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        cross = encoder_hidden_states is not None
        if cross or self.stays_dense(hidden_states, attention_mask is not None):
            return self.dense(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        value = attn.to_v(hidden_states)
        if image_rotary_emb is not None:
            query = transformer_ltx.apply_rotary_emb(query, image_rotary_emb)
            key = transformer_ltx.apply_rotary_emb(key, image_rotary_emb)
        query, key, value = (_by_head(tensor, attn.heads) for tensor in (query, key, value))
        return _project_out(attn, self.attend(query, key, value).flatten(2))


class CogVideoXProcessor(SparseProcessor):
    """CogVideoX: joint attention of text and video, with one set of projections.

    The model puts the text first; here it goes last, so that blocks begin where the video begins. Attention does not see the difference.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        if self.stays_dense(hidden_states, attention_mask is not None):
            return self.dense(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

        video = hidden_states.shape[1]
        joint = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        if attn.fused_projections:
            query, key, value = attn.to_qkv(joint).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(joint), attn.to_k(joint), attn.to_v(joint)
        query, key, value = (_by_head(tensor, attn.heads) for tensor in (query, key, value))
        query, key = _normalise(attn, query, key)
        if image_rotary_emb is not None:
            query, key = _rotate_video(query, image_rotary_emb, video), _rotate_video(key, image_rotary_emb, video)
        lengths = [encoder_hidden_states.shape[1]] * query.shape[0]
        out = _project_out(attn, self.attend_with_text(query, key, value, video, lengths).flatten(2))
        return out[:, :video], out[:, video:]


class HunyuanVideoProcessor(SparseProcessor):
    """HunyuanVideo: joint attention of video and text, which is last and padded.

    Its double-stream blocks have projections of their own for the text, its single-stream blocks share one set. Padding is cut off
    the keys, whose number the session has from the model's `encoder_attention_mask`. Framepack puts the tokens of an image
    before the text.
    """

    reads_text = True

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        lengths = None
        if encoder_hidden_states is not None:
            lengths = self.session.text.lengths(hidden_states, encoder_hidden_states, attention_mask)
        if encoder_hidden_states is None or self.stays_dense(hidden_states, lengths is None):
            return self.dense(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)

        video = hidden_states.shape[1]
        streams = attn.add_q_proj is not None
        tokens = hidden_states if streams else torch.cat([hidden_states, encoder_hidden_states], dim=1)
        query, key, value = (_by_head(proj(tokens), attn.heads) for proj in (attn.to_q, attn.to_k, attn.to_v))
        query, key = _normalise(attn, query, key)
        if image_rotary_emb is not None:
            query = _rotate_video(query, image_rotary_emb, video)
            key = _rotate_video(key, image_rotary_emb, video)
        if streams:
            query, key, value = self._append_text(attn, encoder_hidden_states, query, key, value)

        out = self.attend_with_text(query, key, value, video, lengths).flatten(2)
        out, context = out[:, :video], out[:, video:]
        if getattr(attn, "to_out", None) is not None:
            out = _project_out(attn, out)
        if getattr(attn, "to_add_out", None) is not None:
            context = attn.to_add_out(context)
        return out, context

    @staticmethod
    def _append_text(attn, tokens, query, key, value):
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text_query, text_key, text_value = (_by_head(proj(tokens), attn.heads) for proj in projections)
        if attn.norm_added_q is not None:
            text_query = attn.norm_added_q(text_query)
        if attn.norm_added_k is not None:
            text_key = attn.norm_added_k(text_key)
        pairs = ((query, text_query), (key, text_key), (value, text_value))
        return (torch.cat(pair, dim=1) for pair in pairs)


def _normalise(attn, query, key):
    if attn.norm_q is not None:
        query = attn.norm_q(query)
    if attn.norm_k is not None:
        key = attn.norm_k(key)
    return query, key


def _rotate_video(tensor, tables, video):
    """RoPE on the first `video` tokens of `[batch, tokens, heads, d]`; text tokens have no position."""
    if tensor.shape[1] == video:
        return apply_rotary_emb(tensor, tables, sequence_dim=1)
    return torch.cat([apply_rotary_emb(tensor[:, :video], tables, sequence_dim=1), tensor[:, video:]], dim=1)


def family_of(processor):
    """The sparse processor for an attention whose processor is `processor`, or `None` where there is none."""
    # By exact type: a subclass may do something of its own, which replacing it would lose.
    return _FAMILIES.get(type(processor))


def known():
    """The classes of processors that have a family."""
    return tuple(_FAMILIES)


_FAMILIES = {
    transformer_wan.WanAttnProcessor: WanProcessor,
    transformer_ltx.LTXVideoAttnProcessor: LtxProcessor,
    attention_processor.CogVideoXAttnProcessor2_0: CogVideoXProcessor,
    attention_processor.FusedCogVideoXAttnProcessor2_0: CogVideoXProcessor,
    transformer_hunyuan_video.HunyuanVideoAttnProcessor2_0: HunyuanVideoProcessor,
}
