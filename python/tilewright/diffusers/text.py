"""Text tokens of joint attention: they stay dense.

Text is a few hundred tokens of some ten thousand, and every video token depends on it. So selection runs over the video alone, and the
blocks that hold text are added to its mask: every query sees all text keys, and a text query sees everything.
"""

from __future__ import annotations

import torch

import tilewright

from .identity import Seen


def keep_text(mask, seq_q, seq_kv, video):
    """The mask of `seq_q × seq_kv` tokens, the first `video` of each being those of `mask`, with all text kept.

    A block that holds the end of the video and the beginning of the text counts as text. Text comes after the video, so its block
    numbers follow those a row already keeps and the indices stay ascending.
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
    return tilewright.BlockMask(counts, indices, BLOCK_SIZE=mask.BLOCK_SIZE, seq_lengths=(seq_q, seq_kv))


class TextLengths:
    """How many text tokens of each prompt are real, read from the model's `encoder_attention_mask`.

    Reading waits for the device, so a mask is read once: a pipeline hands over the same tensors at every step.
    """

    def __init__(self):
        self._seen = Seen(4)  # the two prompts of guidance, of two runs

    def of(self, mask):
        """A list of one length for each prompt of `mask [batch, text tokens]`."""
        return self._seen.value(mask, lambda mask: mask.sum(dim=1, dtype=torch.int64).tolist())
