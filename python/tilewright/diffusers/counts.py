"""What was kept: counted on the device as calls go by, read when somebody asks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .tracing import has_values


@dataclass(frozen=True)
class Report:
    """What sparse attention did since `enable`.

    Attributes:
        sparsity: the share of blocks that were left out of the sparse calls, 0 to 1, text included; `None` without a sparse call.
        layers: the same of each attention, by its name in the model.
        sparse_calls: how many calls were computed sparsely.
        dense_calls: how many self-attention calls stayed dense, by reason.
    """

    sparsity: float | None
    layers: dict[str, float] = field(repr=False)
    sparse_calls: int
    dense_calls: dict[str, int]

    def __str__(self):
        dense = ", ".join(f"{count} {reason}" for reason, count in self.dense_calls.items())
        share = "no sparse call yet" if self.sparsity is None else f"{100 * self.sparsity:.1f} % of the blocks left out"
        return f"{share}; {self.sparse_calls} sparse calls, dense: {dense or 'none'}"


class Counts:
    """Counts for one model. A call adds to a number on its device, so that nothing waits.

    Calls over tensors without values (exporting, fake tensors, the meta device) compute nothing, and are not counted.
    """

    def __init__(self):
        self._kept = {}
        self._blocks = {}
        self._sparse = 0
        self._dense = {}

    def sparse(self, name, masks):
        """A sparse call of attention `name`, over the blocks of `masks` (several where the prompts of a batch differ in length)."""
        if not has_values(masks[0].kv_num_blocks):
            return
        for mask in masks:
            counts = mask.row_counts()
            key = (name, counts.device)
            if key not in self._kept:
                with torch.inference_mode(False):  # an inference tensor could not be added to outside of that mode
                    self._kept[key] = torch.zeros((), dtype=torch.int64, device=counts.device)
            self._kept[key] += counts.detach().sum(dtype=torch.int64)
            columns = -(-mask.seq_lengths[1] // mask.BLOCK_SIZE[1])
            self._blocks[name] = self._blocks.get(name, 0) + counts.numel() * columns
        self._sparse += 1

    def dense(self, reason, tokens):
        """A call over `tokens` that stayed dense."""
        if not has_values(tokens):
            return
        self._dense[reason] = self._dense.get(reason, 0) + 1

    @staticmethod
    def report(named):
        """The report over `named` counts, `{prefix: Counts}`. Waits for the device."""
        kept, blocks, sparse, dense = {}, {}, 0, {}
        for prefix, counts in named.items():
            for (name, _), number in counts._kept.items():
                kept[prefix + name] = kept.get(prefix + name, 0) + int(number)
            blocks.update({prefix + name: number for name, number in counts._blocks.items()})
            sparse += counts._sparse
            for reason, number in counts._dense.items():
                dense[reason] = dense.get(reason, 0) + number
        whole = sum(blocks.values())
        return Report(
            sparsity=1 - sum(kept.values()) / whole if whole else None,
            layers={name: 1 - kept[name] / blocks[name] for name in blocks},
            sparse_calls=sparse,
            dense_calls=dense,
        )
