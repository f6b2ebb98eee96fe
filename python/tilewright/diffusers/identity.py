"""Values read from tensors once, though the tensors come again and again."""

from __future__ import annotations


class Seen:
    """What was read from the last `most` tensors. They are held, so that no other tensor takes on the identity of one of them."""

    def __init__(self, most):
        self._most = most
        self._entries = []

    def __getstate__(self):
        # A copy meets tensors of its own.
        return {"_most": self._most, "_entries": []}

    def value(self, tensor, read):
        """`read(tensor)`, which may wait for the device, unless this very tensor was read before and is unchanged since."""
        if tensor.is_inference():  # keeps no version: a changed one could not be told
            return read(tensor)
        for known, version, value in self._entries:
            if known is tensor and version == tensor._version:
                return value
        value = read(tensor)
        self._entries = [*self._entries, (tensor, tensor._version, value)][-self._most :]
        return value
