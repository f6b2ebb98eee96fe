"""What was kept, and what stayed dense: numbers on the device, which a compiled program and a captured graph add to as well."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .tracing import has_values

#: Why a self-attention stays dense.
REASONS = (
    "short",
    "in skipped steps",
    "with an attention mask",
    "context-parallel",
    "of another dtype than float16 and bfloat16",
    "with dropout",
)

# The places of a tally: blocks kept, blocks there were, sparse calls, then dense calls by reason.
_KEPT, _BLOCKS, _SPARSE, _DENSE = range(4)


@dataclass(frozen=True)
class Report:
    """What sparse attention did since `enable`.

    Attributes:
        sparsity: the share of blocks that were left out of the sparse calls, 0 to 1, text included; `None` without a sparse call.
        layers: the same of each attention, by its name in the model.
        sparse_calls: how many calls were computed sparsely.
        dense_calls: how many self-attention calls stayed dense, by reason.
        order: how the tokens lie: in cubes, or in raster order and why; by model where a pipeline has several.
    """

    sparsity: float | None
    layers: dict[str, float] = field(repr=False)
    sparse_calls: int
    dense_calls: dict[str, int]
    order: str = "tokens in raster order"

    def __str__(self):
        dense = ", ".join(f"{count} {reason}" for reason, count in self.dense_calls.items())
        share = "no sparse call yet" if self.sparsity is None else f"{100 * self.sparsity:.1f} % of the blocks left out"
        return f"{share}; {self.sparse_calls} sparse calls, dense: {dense or 'none'}; {self.order}"


class Tally:
    """The numbers of one attention.

    Calls over tensors without values (exporting, fake tensors, the meta device) compute nothing, and are not counted. A copy
    goes on from the numbers of its original.
    """

    def __init__(self, device):
        self._start(device, [0] * (_DENSE + len(REASONS)))

    def _start(self, device, numbers):
        # Of no mode that is on where a model is enabled: an inference tensor could not be added to outside of that mode, a
        # fake one has no numbers.
        with torch.inference_mode(False), torch.utils._python_dispatch._disable_current_modes():
            numbers = torch.tensor(numbers, dtype=torch.int64, device=_real(device))
            # Its place in memory stays, as that of a parameter: a captured graph may add to it.
            torch._dynamo.mark_static_address(numbers)
        self.numbers = numbers

    def __getstate__(self):
        return str(self.numbers.device), self.numbers.tolist()

    def __setstate__(self, state):
        device, numbers = state
        self._start(_there(device), numbers)

    def sparse(self, masks):
        """A sparse call over the blocks of `masks` (several where the prompts of a batch differ in length)."""
        if not has_values(masks[0].kv_num_blocks):
            return
        numbers = self._on(masks[0].kv_num_blocks)
        for mask in masks:
            counts = mask.row_counts().detach()
            columns = -(-mask.seq_lengths[1] // mask.BLOCK_SIZE[1])
            numbers[_KEPT].add_(counts.sum())
            numbers[_BLOCKS].add_(counts.numel() * columns)
        numbers[_SPARSE].add_(1)

    def dense(self, reason, tensor):
        """A call over `tensor` that stayed dense."""
        if has_values(tensor):
            self._on(tensor)[_DENSE + REASONS.index(reason)].add_(1)

    def follow(self, device):
        """Goes along with a model that was moved off the CPU, before its blocks run: compiled blocks have them where they were compiled
        for."""
        if self.numbers.device.type == "cpu" and device.type not in ("cpu", "meta"):
            self._start(device, self.numbers.tolist())

    def _on(self, tensor):
        if self.numbers.device != tensor.device:
            # A model on several devices.
            with torch.inference_mode(False):
                self.numbers = self.numbers.to(tensor.device)
        return self.numbers


def report(layers, order):
    """The report over layers by name, each with a tally. Waits for the device."""
    found = {name: layer.tally.numbers.tolist() for name, layer in layers.items()}
    kept, blocks, sparse = (sum(numbers[place] for numbers in found.values()) for place in (_KEPT, _BLOCKS, _SPARSE))
    dense = {
        reason: calls
        for place, reason in enumerate(REASONS, _DENSE)
        if (calls := sum(numbers[place] for numbers in found.values()))
    }
    return Report(
        sparsity=1 - kept / blocks if blocks else None,
        layers={name: 1 - n[_KEPT] / n[_BLOCKS] for name, n in found.items() if n[_BLOCKS]},
        sparse_calls=sparse,
        dense_calls=dense,
        order=order,
    )


def _real(device):
    """The device, or the CPU where tensors have no numbers."""
    return torch.device("cpu") if device.type == "meta" else device


def _there(device):
    """The device of a tally that comes back from a file, which this machine may lack."""
    device = torch.device(device)
    lost = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    return torch.device("cpu") if lost else device
