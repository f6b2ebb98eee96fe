"""Text tokens of joint attention: they stay dense.

Text is a few hundred tokens of some ten thousand, and every video token depends on it. So selection runs over the video alone, and the
blocks that hold text are added to its mask: every query sees all text keys, and a text query sees everything.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

import tilewright

from .identity import Seen
from .tracing import exporting, has_values


@dataclass(frozen=True)
class Joint:
    """A sequence of `video` tokens of the video, then text, of which each of the batch has `lengths` keys that count; without
    lengths nobody knows how many."""

    video: int
    lengths: list[int] | None


def attend(query, key, value, joint, options, **given):
    """Joint self-attention of `[batch, tokens, heads, d]`, and its masks: one, or one for each of the batch."""
    video, lengths = joint.video, joint.lengths
    if len(set(lengths)) == 1:
        parts = [(query, key, value, lengths[0])]
    else:  # prompts of unequal length: each video of the batch has its own number of keys
        each = (tensor.split(1) for tensor in (query, key, value))
        parts = list(zip(*each, lengths))
    done = [_attend_to(q, k[:, : video + n], v[:, : video + n], video, options, **given) for q, k, v, n in parts]
    masks = [mask for _, mask in done]
    return (done[0][0] if len(done) == 1 else torch.cat([out for out, _ in done])), masks


def _attend_to(query, key, value, video, options, **given):
    mask = tilewright.block_mask(
        query[:, :video],
        key[:, :video],
        top_k=options.top_k,
        top_p=options.top_p,
        block_size=options.block_size,
        layout="BSHD",
        dropped=options.tail is not None,
        scores=options.scores,
        **given,
    )
    mask = keep_text(mask, query.shape[1], key.shape[1], video, says_dropped=options.tail is not None)
    return tilewright.attention(query, key, value, mask, layout="BSHD", tail=options.tail, **given), mask


def keep_text(mask, seq_q, seq_kv, video, says_dropped=False):
    """The mask of `seq_q × seq_kv` tokens, the first `video` of each being those of `mask`, with all text kept.

    A block that holds the end of the video and the beginning of the text counts as text. Text comes after the video, so its block
    numbers follow those a row already keeps and the indices stay ascending. `says_dropped`: it says which blocks it drops, as `mask` does.
    """
    block_q, block_kv = mask.BLOCK_SIZE
    rows, columns = -(-seq_q // block_q), -(-seq_kv // block_kv)
    first_row, first_column = video // block_q, video // block_kv

    batch, heads, video_rows, width = mask.kv_indices.shape
    indices = mask.kv_indices.new_zeros(batch, heads, rows, columns)
    indices[:, :, :video_rows, :width] = mask.kv_indices
    counts = mask.kv_num_blocks.new_zeros(batch, heads, rows)
    counts[:, :, :video_rows] = mask.kv_num_blocks

    # A row that keeps the shared block has it last: it is written again with the rest of the text.
    last = indices.gather(-1, (counts - 1).clamp(min=0).long().unsqueeze(-1)).squeeze(-1)
    counts -= ((last == first_column) & (counts > 0)).to(counts.dtype)
    text = torch.arange(first_column, columns, dtype=indices.dtype, device=indices.device)
    places = counts.unsqueeze(-1).long() + torch.arange(len(text), device=indices.device)
    indices.scatter_(-1, places, text.expand_as(places))
    counts += len(text)

    indices[:, :, first_row:] = torch.arange(columns, dtype=indices.dtype, device=indices.device)
    counts[:, :, first_row:] = columns
    dropped = None
    if says_dropped:
        dropped = mask.dropped.new_zeros(batch, heads, rows, -(-columns // 32))
        dropped[:, :, :first_row, : mask.dropped.shape[3]] = mask.dropped[:, :, :first_row]
        # The shared block is kept now.
        word, bit = divmod(first_column, 32)
        dropped[..., word : word + 1] &= ~(1 << bit) if bit < 31 else (1 << 31) - 1
    return tilewright.BlockMask(
        counts, indices, BLOCK_SIZE=mask.BLOCK_SIZE, seq_lengths=(seq_q, seq_kv), dropped=dropped
    )


class TextLengths:
    """How many text tokens of each prompt are real, of the forward pass under way.

    Read from the model's `encoder_attention_mask`. Reading waits for the device, so a mask is read once: a pipeline hands
    over the same tensors at every step.
    """

    def __init__(self):
        self._seen = Seen(4)  # the two prompts of guidance, of two runs
        self._prompts = None

    def observe(self, mask):
        """Takes the mask `[batch, text tokens]` a model is called with, if it is called with one."""
        readable = isinstance(mask, torch.Tensor) and mask.dim() == 2 and has_values(mask)
        self._prompts = self._seen.value(mask, _Prompts) if readable else None

    def lengths(self, video, context, attention_mask):
        """How many of the `context [batch, tokens, channels]` of each prompt are keys, after all tokens of `video`.

        `None` where the attention's mask does not say just that, or cannot be read: the call has to stay dense.
        """
        if attention_mask is None:
            return [context.shape[1]] * context.shape[0]
        if self._prompts is not None:
            return self._prompts.lengths(video, context, attention_mask)
        if exporting():
            warnings.warn(
                "the lengths of the prompts cannot be read while the model is exported: its joint attention stays dense in "
                "the program. Use torch.compile, which keeps it sparse",
                stacklevel=2,
            )
        return None


class _Prompts:
    """The prompts of one `encoder_attention_mask`."""

    def __init__(self, mask):
        self._tokens = mask.shape[1]
        # As the models count them: the first so many text tokens are keys, wherever the mask has its ones.
        self._real = mask.sum(dim=1, dtype=torch.int64).tolist()
        self._agrees = {}

    def lengths(self, video, context, attention_mask):
        # Tokens of an image, which the model puts before the text, are all of them real.
        before = context.shape[1] - self._tokens
        lengths = [before + real for real in self._real]
        if len(lengths) == 1:
            lengths *= context.shape[0]
        if before < 0 or len(lengths) != context.shape[0]:
            return None
        if torch.compiler.is_compiling():
            return lengths
        # What the model makes of its mask is checked once for each prompt and size: another version may differ.
        sizes = video.shape[1], context.shape[1]
        if sizes not in self._agrees:
            keys = [video.shape[1] + length for length in lengths]
            self._agrees[sizes] = _is_prefix(attention_mask, keys, sum(sizes))
        return lengths if self._agrees[sizes] else None


def _is_prefix(mask, lengths, keys):
    """Whether a mask over so many `keys` lets every query see the first so many of them, for each of the batch."""
    if mask.dtype != torch.bool or mask.shape != (len(lengths), 1, 1, keys):
        return False
    expected = torch.arange(keys, device=mask.device) < torch.tensor(lengths, device=mask.device).view(-1, 1, 1, 1)
    return torch.equal(mask, expected)
